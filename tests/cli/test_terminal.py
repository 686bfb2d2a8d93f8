"""What goes to stdout and stderr: JSON with its schema, quiet and verbose, one line for a bug."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mmrr.cli import terminal, workspace
from tests.cli.conftest import Prepared
from tests.console import mmrr, write_queries

ROOT = Path(__file__).parents[2]
QUESTION = "When is the thesis due?"


@pytest.mark.parametrize(
    "command",
    [
        ("rerank", QUESTION),
        ("retrieve", QUESTION),
        ("ls",),
        ("ls", "--documents"),
        ("verify",),
        ("verify", "--rescore", "1"),
        ("models",),
        ("config",),
        ("doctor",),
    ],
    ids=" ".join,
)
def test_json_has_a_schema_and_documented_fields(copy: Prepared, command: tuple[str, ...], tmp_path: Path) -> None:
    if "--rescore" in command:
        mmrr("retrieve", "--queries", write_queries(tmp_path / "q.jsonl", ("q1", QUESTION)), "--work", copy.work)
    work = () if command[0] == "models" else ("--work", copy.work)
    document = json.loads(mmrr(*command, *work, "--json").stdout)
    assert next(iter(document)) == "schema"
    assert document["schema"] == terminal.SCHEMA
    page = (ROOT / "docs" / "json.md").read_text("utf-8")
    section = re.split(rf"^## .*`mmrr {command[0]}`.*$", page, flags=re.MULTILINE)[1].split("\n## ")[0]
    for field in document.keys() - {"schema"}:
        assert f"`{field}`" in section, field


def test_the_json_of_an_error(tmp_path: Path) -> None:
    result = mmrr("ls", "--work", tmp_path / "none", "--json", code=1)
    document = json.loads(result.stdout)
    assert list(document) == ["schema", "error"]
    assert document["schema"] == terminal.SCHEMA
    assert result.stderr == f"error: {document['error']}\n"
    assert "no workspace at" in document["error"]


def test_the_json_of_an_error_before_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mmrr.toml").write_text("[mmrr]\nunknown = 1\n")
    assert "unknown key" in json.loads(mmrr("models", "--json", code=1).stdout)["error"]


def test_the_json_of_an_error_with_invalid_characters(tmp_path: Path) -> None:
    document = json.loads(mmrr("ls", "--work", tmp_path / "a\udcffb", "--json", code=1).stdout)
    assert "a?b" in document["error"]


def test_quiet_shows_errors_only(copy: Prepared, tmp_path: Path) -> None:
    queries = write_queries(tmp_path / "q.jsonl", ("q1", QUESTION))
    command = ("rerank", "--queries", queries, "--work", copy.work)
    assert QUESTION in mmrr(*command).stdout
    result = mmrr("-q", *command)
    assert result.stderr == ""
    assert Path(result.stdout.strip()).is_dir()
    assert mmrr("-q", "ls", "--work", tmp_path / "none", code=1).stderr.startswith("error: ")
    assert QUESTION in mmrr(*command).stdout, "quiet must end with its command"


def test_verbose_shows_timings(copy: Prepared) -> None:
    assert " s\n" not in mmrr("rerank", QUESTION, "--work", copy.work).stderr
    lines = mmrr("-v", "rerank", f"{QUESTION} Really?", "--work", copy.work).stderr.splitlines()
    assert re.fullmatch(r"mmrr rerank: \d+\.\d\d s", lines[-1])
    assert any(re.fullmatch(r".+: \d+ in \d+\.\d\d s", line) for line in lines)


BUG = """
from mmrr.cli import main, workspace
def broken(*args, **options): raise ZeroDivisionError("a bug")
workspace.report_workspace.models = broken
main.main()
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_a_bug_is_one_line_and_with_verbose_a_traceback(verbose: bool) -> None:
    assert callable(workspace.report_workspace.models)
    ran = subprocess.run(
        [sys.executable, "-c", BUG, *["-v"] * verbose, "models"], capture_output=True, text=True, env=os.environ
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ("Traceback" in ran.stderr) == verbose
    assert "ZeroDivisionError: a bug" in ran.stderr
    if not verbose:
        assert ran.stderr.count("\n") == 1
        assert "mmrr -v" in ran.stderr


def test_a_count_has_a_singular() -> None:
    assert [terminal.counted(n, "page") for n in (0, 1, 2)] == ["0 pages", "1 page", "2 pages"]
    assert [terminal.counted(n, "query", "queries") for n in (1, 2)] == ["1 query", "2 queries"]
