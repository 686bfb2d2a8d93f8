"""``benchmarks/gpu.sh`` runs to its end without a GPU, on a tiny model, and writes the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"


@pytest.mark.slow
def test_the_dry_run_measures_every_kind_of_row(tmp_path: Path) -> None:
    command = ["bash", str(SCRIPT), "--tiny", "--device", "cpu", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = tmp_path / "out"
    assert (written / "steps.txt").read_text().splitlines() == ["tests skipped", "bench-tiny 0", "pages-tiny 0"]
    rows = {row["what"] for row in json.loads((written / "bench-tiny.json").read_text())["rows"]}
    assert {"dense, batched", "mini int8, cold disk", "mini int8, page cache", "mini int8, resident"} <= rows
    pages = json.loads((written / "pages-tiny.json").read_text())
    for what in ("embed", "precache"):
        assert pages[f"{what}_batched_pages_per_second"] > 0
    table = (written / "table.md").read_text()
    assert table == done.stdout
    assert "| tiny | mini int8, resident | 2 |" in table
    assert "| tests | skipped: no CUDA device |" in table
    assert not list(written.rglob("*.safetensors"))


def test_a_step_over_its_limit_leaves_the_others(tmp_path: Path) -> None:
    """The table names what was not measured."""
    from benchmarks.gpu import table

    (tmp_path / "steps.txt").write_text("tests 1\nbench-2b 124\npages-2b 0\n")
    (tmp_path / "bench-2b.json").write_text('{"rows": [')  # cut off
    found = {"embed_batched_pages_per_second": 9.5, "embed_one_by_one_pages_per_second": 4.0}
    found |= {"precache_batched_pages_per_second": 8.0, "precache_one_by_one_pages_per_second": 5.0}
    found |= {"embed_batched_peak_bytes": 12e9, "precache_batched_peak_bytes": 0}
    (tmp_path / "pages-2b.json").write_text(json.dumps(found))
    lines = table(tmp_path).splitlines()
    assert "| bench-2b | not measured: over its time limit |" in lines
    assert "| tests | failed with status 1 |" in lines
    assert "| 2b | embed | 9.5 | 4.0 | 12.0 |" in lines
