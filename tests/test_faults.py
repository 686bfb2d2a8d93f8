"""The campaign of faults: a few cases find nothing in mmrr, and a wrong ranking is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(not (ROOT / "benchmarks" / "faults.py").exists(), reason="needs a checkout"),
    pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system"),
]


def campaign(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.faults", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_few_cases_find_nothing(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    done = campaign("--seed", 5, "--case", 0, "--case", 1, "--case", 2, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert sum(sum(of_kind.values()) for of_kind in found["counts"].values()) == 3
    assert found["faults"] == []


def test_a_silently_different_ranking_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import fault_chain, faults

    done = fault_chain.Done(0, str(tmp_path) + "\n", "", 0.1)
    (tmp_path / "run.trec").write_text("another")
    monkeypatch.setattr(fault_chain.Chain, "run", lambda self, args, before=None: done)
    found = faults.Campaign(fault_chain.Chain(tmp_path), seed=1, expected={"rerank": b"this"})
    with pytest.raises(faults.FaultError, match="the ranking of rerank is silently different"):
        found.finish(tmp_path, strict=True)
    monkeypatch.setattr(
        faults, "KINDS", {name: lambda *_: found.finish(tmp_path, strict=True) for name in faults.KINDS}
    )
    found.case(3)
    assert found.faults[0]["case"] == 3
    (counts,) = found.counts.values()
    assert counts == {"FAULT": 1}


@pytest.mark.parametrize(
    ("code", "err", "is_fault"),
    [
        (0, "", False),
        (1, "error: no such file\n", False),
        (2, "Usage: mmrr\n", False),
        (1, "error: a bug in mmrr: KeyError\n", True),
        (1, "Traceback (most recent call last):\nKeyError\n", True),
        (1, "", True),
        (-11, "", True),
        (None, "", True),
    ],
)
def test_how_a_command_may_end(code: int | None, err: str, is_fault: bool) -> None:
    from benchmarks.fault_chain import Done

    assert bool(Done(code, "", err, 1.0).bug) == is_fault
