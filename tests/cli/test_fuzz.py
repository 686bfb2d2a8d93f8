"""Every option of every command with values that people and scripts get wrong: one line of error, never a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mmrr.cli.main import app
from tests.cli.conftest import Prepared

SEED = 20
#: Values of each option that a run of the tests tries; other seeds try others.
PER_OPTION = 1
HUGE = "9" * 400
VALUES = (
    *(
        "",
        " ",
        HUGE,
        "-" + HUGE,
        f"0.{HUGE}",
        "9" * 5000,
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "00",
        "1_0",
    ),
    *(
        "2147483648",
        "9223372036854775808",
        "١٢",
        "½",
        "0x10",
        "1:",
        ":",
        "a=b",
        "=",
        "a=",
        "dim=" + HUGE,
        "a/b",
        "index/",
    ),
    *(
        "~nosuchuser/x",
        "/dev/null/x",
        "x" * 300,
        "/" + "x/" * 3000,
        "s3://bucket/key",
        "..",
        "\udcff",
        "\ufeffq",
        "a\nb",
    ),
    *("IVF" + HUGE, "max_tokens=nan", "band=" + HUGE, "thesis.pdf/" + HUGE, "{}", "[", "%s", "$(x)", "員工", "--json"),
)
#: What a command needs so that a wrong option is the only thing that is wrong. Every command fails early: none of
#: these files exists, so nothing is computed.
ARGUMENTS = {
    "index": ["none.pdf"],
    "render": ["none.pdf"],
    "run": ["none.pdf", "--queries", "none.jsonl"],
    "rerank": ["thesis", "--from", "precache/0123456789ab"],
    "retrieve": ["thesis", "--first-stage", "dense"],
    "view": ["thesis.pdf/0001"],
    "fuse": ["none.trec", "none.trec", "--output", "none.trec"],
    "rm": ["index/0123456789ab"],
    "bench": ["none", "--folder", "none"],
    "mine": ["--queries", "none.jsonl", "--qrels", "none.trec", "--output", "none"],
    "probe": ["--queries", "none.jsonl", "--qrels", "none.trec"],
    "compare": ["--queries", "none.jsonl", "--qrels", "none.trec"],
    "train": ["reader", "--config", "none.toml", "--run-dir", "none"],
    "distill": ["--queries", "none.jsonl", "--output", "none"],
    "draw": ["none.jsonl", "--output", "none"],
    "eval": ["--qrels", "none.trec"],
    "eval mmdocir": ["--data", "none"],
    "eval benchmark": ["none"],
    "explain": ["thesis", "none.pdf/0001"],
    "merge": ["none", "--output", "none"],
    "report": ["--qrels", "none.trec", "--output", "none.html"],
    "tune": ["--queries", "none.jsonl", "--qrels", "none.trec"],
    "precache": ["--scorer-model", "none"],
    "prune": [],
    "serve": ["--api-key-file", "none.txt"],
}
#: They show something whatever the options are, and start no work.
SHOWING = ("ls", "config")
#: Options with which a command needs no more than it has.
ENOUGH = ("--show", "--list")


def commands() -> Iterator[tuple[str, Any]]:
    """The commands with options, by name. Any: Click's commands have no public type in every version of Typer."""
    for name, command in typer.main.get_command(app).commands.items():
        yield name, command
        for inner, own in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", own


def takes_json(command: Any) -> bool:
    return any(parameter.name == "json_" for parameter in command.params)


def cases(name: str, command: Any) -> Iterator[list[str]]:
    draw = random.Random(f"{SEED} {name}")
    for parameter in command.params:
        if parameter.param_type_name != "option" or parameter.name in ("help", "work"):
            continue
        option = parameter.opts[-1]
        if parameter.is_flag:
            yield [option]
            continue
        for value in draw.sample(VALUES, PER_OPTION):
            yield [option, value]
    for value in draw.sample(VALUES, PER_OPTION):
        yield ["--work", value]
        yield [value]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), [case for case in commands() if case[0] in (*ARGUMENTS, *SHOWING)])
def test_a_wrong_value_is_one_line(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    for case in cases(name, command):
        work = [] if name in ("fuse", "bench", "draw", "train") or "--work" in case else ["--work", str(prepared.work)]
        found = runner.invoke(app, [*name.split(), *ARGUMENTS.get(name, []), *work, *case])
        shown = f"{name} {' '.join(case)[:200]}\n{found.stderr[-2000:]}"
        assert found.exception is None or isinstance(found.exception, SystemExit), (shown, found.exc_info)
        assert found.exit_code in ((0, 1, 2) if name in SHOWING or case[0] in ENOUGH else (1, 2)), shown
        errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == (found.exit_code != 0), shown
        assert len(found.stderr) < 7000, shown
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("s3:")]


def test_every_command_is_tried() -> None:
    others = {"doctor", "mcp", "models", "verify"}  # no option of their own but --work, --json, --device and --dtype
    assert {name for name, _ in commands()} == {*ARGUMENTS, *SHOWING, *others}


@pytest.mark.parametrize("name", [name for name, command in commands() if takes_json(command)])
def test_an_error_is_json_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {"models": ["--nonsense"], "config": ["--nonsense"], "doctor": ["--nonsense"]}
    for arguments in (wrong.get(name, ARGUMENTS.get(name, [])), ["--nonsense"]):
        found = CliRunner().invoke(app, [*name.split(), *arguments, "--json"])
        assert isinstance(found.exception, SystemExit), found.exc_info
        document = json.loads(found.stdout)
        assert list(document) == ["schema", "error"]
        assert found.stderr.splitlines()[-1] == f"error: {document['error']}"


@pytest.mark.parametrize("number", [HUGE, "9" * 5000, "1e999", "-" + HUGE])
def test_numbers_in_files(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.chdir(tmp_path)
    whole = number.lstrip("-").isdigit()
    for name, text in {
        "mmrr.toml": f"[mmrr]\ncandidates = {number}\n" if whole else f"[mmrr]\nfuse = {number}\n",
        "q.jsonl": f'{{"query_id": "a", "text": {number}}}\n',
        "qrels.trec": f"query 0 thesis.pdf/0001 {number}\n",
        "run.trec": f"query Q0 thesis.pdf/0001 1 {number} x\n",
        "train.toml": f"steps = {number}\n",
    }.items():
        (tmp_path / name).write_text(text)
        command = {
            "mmrr.toml": ("config",),
            "q.jsonl": ("retrieve", "--queries", "q.jsonl", "--work", prepared.work),
            "qrels.trec": ("eval", "--qrels", "qrels.trec", "--run", "run.trec", "--work", prepared.work),
            "run.trec": ("fuse", "run.trec", "run.trec", "--output", "out.trec"),
            "train.toml": ("train", "reader", "--config", "train.toml", "--run-dir", "r"),
        }[name]
        (tmp_path / "run.trec").exists() or (tmp_path / "run.trec").write_text("query Q0 thesis.pdf/0001 1 1 x\n")
        found = CliRunner().invoke(app, [str(part) for part in command])
        shown = f"{name}\n{found.stderr[-2000:]}"
        assert isinstance(found.exception, SystemExit), (shown, found.exc_info)
        assert found.exit_code == 1, shown
        assert found.stderr.count("error: ") == 1, shown
        (tmp_path / name).unlink()
