"""Terminals that cannot show a character, and pipes that are closed early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.console import INDEX, mmrr
from tests.pdfs import make_pdf

START = (sys.executable, "-c", "from mmrr.cli.main import main; main()")
NAME = "Köln_員工.pdf"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streams")
    (root / NAME).write_bytes(make_pdf(["words"]))
    mmrr("index", root / NAME, "--work", root / "w", *INDEX)
    return root / "w"


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "K?ln_??.pdf"), ("latin-1", "Köln_??.pdf")])
def test_a_character_that_the_terminal_cannot_show_is_a_question_mark(work: Path, encoding: str, shown: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = (*START, "ls", "--documents", "--work", str(work))
    ran = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert shown in ran.stdout.decode(encoding)
    assert ran.stderr == b""
    if encoding == "ascii":
        ran = subprocess.run((*command, "--json"), capture_output=True, env=environment, check=True)
        assert json.loads(ran.stdout)["documents"][0]["doc_id"] == NAME
        missing = (*START, "ls", "--work", str(work.parent / "員"))
        ran = subprocess.run(missing, capture_output=True, env=environment, check=False)
        assert ran.returncode == 1
        assert ran.stderr.startswith(b"error: no workspace at ")
        assert ran.stderr.count(b"\n") == 1


def test_a_pipe_that_is_closed_early(work: Path) -> None:
    with subprocess.Popen(
        (*START, "ls", "--work", str(work)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_user_without_a_home_folder(work: Path) -> None:
    said = mmrr("ls", "--work", "~nosuchuser/w", code=1).stderr
    assert said == "error: ~nosuchuser/w: no home folder of the user ~nosuchuser; expected another path\n"
    said = mmrr("precache", "--work", work, "--scorer-model", "~nosuchuser/m", code=1).stderr
    assert said.startswith("error: ")
    assert "~nosuchuser/m" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("option", ["--json", "--documents"])
def test_a_stdout_that_takes_nothing_is_one_line(work: Path, option: str) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            (*START, "ls", option, "--work", str(work)), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1


def test_the_tables_of_a_file_of_questions_are_results(work: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("words\n")
    alone = mmrr("retrieve", "words", "--work", work)
    several = mmrr("retrieve", "--queries", tmp_path / "q.txt", "--work", work)
    assert "first" not in several.stderr
    for line in alone.stdout.splitlines()[1:-1]:
        assert line in several.stdout


def test_a_wrong_value_of_ocr_is_no_path(work: Path) -> None:
    said = mmrr("index", "--ocr", "maybe", work.parent / NAME, "--work", work, code=2).stderr
    assert "'maybe' is not one of 'auto', 'force', 'never'" in said
