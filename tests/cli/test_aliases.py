"""Old spellings of commands and options: they work, they are not in the help, and one line names the new spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main

from mmrr.cli import aliases
from mmrr.cli.main import app
from tests.console import mmrr, refused
from tests.texts import write_texts

ALIASES = [(command, old, new) for command, names in aliases.OPTIONS.items() for old, new in names.items()]


def options(command: str) -> set[str]:
    """The options of a command; mmdocir is a command of the group eval."""
    group = typer.main.get_command(app).commands
    found = group["eval"].commands[command] if command == "mmdocir" else group[command]
    return {name for parameter in found.params for name in parameter.opts}


@pytest.mark.parametrize(("command", "old", "new"), ALIASES)
def test_an_alias_leads_to_an_option_and_hides_none(command: str, old: str, new: str) -> None:
    assert new in options(command)
    assert old not in options(command)


@pytest.mark.parametrize(("old", "new"), aliases.COMMANDS.items())
def test_an_old_command_is_not_in_the_help(old: str, new: str) -> None:
    commands = typer.main.get_command(app).commands
    assert new in commands
    assert old not in commands


@pytest.mark.parametrize("form", [("--out", "{}"), ("--out={}",)])
def test_an_old_option_works_with_a_notice(tmp_path: Path, form: tuple[str, ...]) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    given = [part.format(tmp_path / "bench") for part in form]
    result = mmrr("draw", texts, *given, "--pages", 1, "--questions", 1, "--phrases", 1)
    assert result.stderr.splitlines()[0] == "--out is now --output"
    assert result.stdout == f"{tmp_path / 'bench'}\n"
    assert (tmp_path / "bench" / "queries.jsonl").is_file()


def test_an_old_command_works_with_a_notice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.trec").write_text("q Q0 d/0001 1 2 t\nq Q0 d/0002 2 1 t\n")
    arguments = (tmp_path / "a.trec", tmp_path / "b.trec", "--output", tmp_path / "c.trec")
    assert mmrr("blend", *arguments).stderr.splitlines()[0] == "blend is now fuse"
    assert mmrr("-q", "blend", *arguments).stderr == ""
    old = (tmp_path / "c.trec").read_bytes()
    assert "is now" not in mmrr("fuse", *arguments).stderr
    assert (tmp_path / "c.trec").read_bytes() == old


def test_quiet_hides_the_notice(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    arguments = ("draw", texts, "--out", tmp_path / "bench", "--pages", 1, "--questions", 0, "--phrases", 1)
    assert mmrr("--quiet", *arguments).stderr == ""


def test_words_after_two_dashes_are_no_options(tmp_path: Path) -> None:
    """The query is --blend, not the option --fuse: the command then fails because there is no workspace."""
    message = refused("rerank", "--work", tmp_path / "none", "--", "--blend")
    assert "no workspace at" in message
