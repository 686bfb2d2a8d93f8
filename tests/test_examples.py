"""The scripts in examples/ run: the shell scripts as a user starts them, with the ``mmrr`` of this interpreter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmrr.evaluation.trec import read_run
from tests.console import SOIL, THESIS, write_documents, write_queries

EXAMPLES = Path(__file__).parents[1] / "examples"
#: As pip writes it. Without the condition, helper processes that are spawned would run the command again.
LAUNCHER = f"""#!{sys.executable}
import sys
from mmrr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder with documents, queries, and a ``mmrr`` command for the shell scripts."""
    write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    write_queries(tmp_path / "queries.jsonl", ("q1", "When is the thesis due?"), ("q2", "How moist is the soil?"))
    launcher = tmp_path / "bin" / "mmrr"
    launcher.parent.mkdir()
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    return tmp_path


def run(place: Path, *command: object, **environment: object) -> str:
    """Standard output of the command. It fails if the command fails."""
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    values = {**os.environ, "PATH": path, **{name: str(value) for name, value in environment.items()}}
    values.pop("MMRR_WORK", None)
    done = subprocess.run(list(map(str, command)), cwd=place, env=values, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")


@pytest.mark.slow
@needs_bash
def test_search_finds_the_page_by_its_words(place: Path) -> None:
    shown = run(place, "bash", EXAMPLES / "search.sh", "docs", "When is the thesis due?")
    first = next(line for line in shown.splitlines() if line.startswith("│ 1"))
    assert "thesis" in first


@pytest.mark.slow
@needs_bash
def test_rerank_writes_a_run(place: Path, tiny_path: Path, tiny_embedder_path: Path) -> None:
    run(
        place,
        *("bash", EXAMPLES / "rerank.sh", "docs", "queries.jsonl", "run.trec"),
        MMRR_EMBEDDER=tiny_embedder_path,
        MMRR_SCORER_MODEL=tiny_path,
    )
    assert set(read_run(place / "run.trec")) == {"q1", "q2"}


@needs_bash
def test_rerank_without_a_model_says_what_is_missing(place: Path) -> None:
    command = ["bash", str(EXAMPLES / "rerank.sh"), "docs", "queries.jsonl", "run.trec"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MMRR_")}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "MMRR_EMBEDDER: name an embedder" in done.stderr
    assert not (place / "mmrr-work").exists()


def test_compare_runs_prints_both_and_the_difference(place: Path) -> None:
    (place / "base.trec").write_text("q1 Q0 a.pdf/0002 1 2.0 x\nq1 Q0 a.pdf/0001 2 1.0 x\nq2 Q0 b.pdf/0001 1 1.0 x\n")
    (place / "new.trec").write_text("q1 Q0 a.pdf/0001 1 2.0 x\nq1 Q0 a.pdf/0002 2 1.0 x\nq2 Q0 b.pdf/0001 1 1.0 x\n")
    (place / "qrels.trec").write_text("q1 0 a.pdf/0001 1\nq2 0 b.pdf/0001 1\n")
    shown = run(place, sys.executable, EXAMPLES / "compare_runs.py", "base.trec", "new.trec", "qrels.trec")
    row = next(line for line in shown.splitlines() if line.startswith("R@1"))
    assert row.split() == ["R@1", "0.5000", "1.0000", "+0.5000", "+0.0000", "to", "+1.0000"]


@pytest.mark.slow
def test_search_pages_prints_the_page_and_saves_it(place: Path) -> None:
    shown = run(place, sys.executable, EXAMPLES / "search_pages.py", "docs", "When is the thesis due?").splitlines()
    assert shown[0] == "2 added"
    assert shown[1].startswith("1 thesis.pdf/0001 ")
    assert (place / "best.png").stat().st_size > 0


def test_rank_images_prints_every_page(place: Path, tiny_path: Path, page_images: list[Image.Image]) -> None:
    for i, image in enumerate(page_images[:2]):
        image.save(place / f"{i}.png")
    shown = run(place, sys.executable, EXAMPLES / "rank_images.py", tiny_path, "a question", "0.png", "1.png")
    scores, names = zip(*(line.split() for line in shown.splitlines()), strict=True)
    assert set(names) == {"0.png", "1.png"}
    assert list(scores) == sorted(scores, reverse=True)


def test_every_example_is_listed_and_run() -> None:
    here = Path(__file__).parent
    # The examples of other frameworks are run by the tests of their adapters.
    tests = "".join(path.read_text("utf-8") for path in [Path(__file__), *here.glob("integrations/test_*.py")])
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    scripts = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".py")]
    assert scripts
    for name in scripts:
        assert f"`{name}`" in listed
        assert f'"{name}"' in tests
