"""The documents tell the truth about commands, options, scripts, files and folders."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import mmrr
from mmrr.cli.main import app

ROOT = Path(__file__).parents[2]
#: docs/cli.md is generated from the commands themselves.
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*", "mmrr/models/README.md", "Makefile", "tests/wheel.sh")
    for path in ROOT.glob(pattern)
    if path.suffix in (".md", ".sh", ".py", "") and path.name != "cli.md"
)
MARKDOWN = [name for name in DOCUMENTS if name.endswith(".md")]
#: Any: recent versions of Typer contain a private copy of Click, so a command has no public type.
COMMAND: Any = typer.main.get_command(app)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def command_lines(text: str) -> Iterator[list[str]]:
    """The words after ``mmrr`` of every command line in code blocks, scripts and inline code."""
    joined = re.sub(r"\\\n\s*", " ", text)
    at_start = r"^\s*(?:@|[A-Z_]+=\S+ )*(?:\$\(BIN\)/|\"\$bin/)?mmrr\"? (.*)$"
    for found in [*re.findall(at_start, joined, flags=re.MULTILINE), *re.findall(r"`mmrr ([^`\n]+)`", joined)]:
        try:
            words = shlex.split(found, comments=True)
        except ValueError:  # prose that starts with the word mmrr
            continue
        # A command's name or an option: prose goes on with other words.
        if words and (words[0].startswith("--") or words[0] in COMMAND.commands or "`" + "mmrr " + found + "`" in text):
            yield words


def problem(words: list[str]) -> str | None:
    """What the command line has that mmrr lacks; None if nothing."""
    command, rest = COMMAND, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    if command.name == "eval" and rest and not rest[0].startswith("-"):
        command = command.commands["benchmark"]  # the name of a benchmark, a Hub id or a path
    if command is COMMAND and rest and not rest[0].startswith("-"):
        return None if rest[0].isupper() else f"no command {rest[0]}"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    # A group's own options may come before its subcommand's.
    used = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return next((f"mmrr {command.name} has no {name}" for name in used if name not in known), None)


#: The changelog names options of earlier versions too.
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_every_command_line_is_one_that_mmrr_takes(name: str) -> None:
    problems = {found for words in command_lines(text_of(name)) if (found := problem(words))}
    assert not problems


def test_the_reader_of_command_lines() -> None:
    text = "    mmrr rerank 'a b' \\\n        --top-k 5    # best\nA `mmrr ls` and `mmrr nothing --x`.\nmmrr finds.\n"
    assert list(command_lines(text)) == [["rerank", "a b", "--top-k", "5"], ["ls"], ["nothing", "--x"]]
    assert problem(["rerank", "a b", "--top-k", "5"]) is None
    assert problem(["nothing", "--x"]) == "no command nothing"
    assert problem(["rerank", "--nothing=3"]) == "mmrr rerank has no --nothing"
    assert problem(["COMMAND", "--help"]) is None


def test_the_readme_shows_the_everyday_commands() -> None:
    shown = {words[0] for words in command_lines(text_of("README.md"))}
    assert {"index", "precache", "rerank", "eval", "retrieve", "view"} <= shown


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_module_that_is_run_exists(name: str) -> None:
    for module in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", text_of(name)):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_link_leads_to_a_file(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text_of(name)):
        assert (ROOT / name).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", MARKDOWN)
def test_every_file_and_folder_that_is_named_exists(name: str) -> None:
    for path in re.findall(r"`((?:tests|benchmarks|examples|mmrr)/[\w/]+(?:\.py|\.sh|/))`", text_of(name)):
        # The guide to scorers invents a helper module, whose name begins with an underscore.
        assert (ROOT / path).exists() or "/_" in path, path


def test_the_design_lists_every_folder_and_every_module_at_the_root() -> None:
    tree = text_of("docs/design.md").split("## The tree")[1].split("## The data flow")[0]
    listed = set(re.findall(r"^ +([\w/]+(?:\.py|/))(?: |$)", tree, flags=re.MULTILINE))
    package = ROOT / "mmrr"
    folders = {f"{path.parent.name}/" for path in package.glob("**/__init__.py")}
    modules = {path.name for path in package.glob("*.py")}
    assert folders | modules <= listed | {"mmrr/"}


def test_the_documentation_lists_every_page() -> None:
    navigation = set(re.findall(r": (\S+\.md)$", text_of("mkdocs.yml"), flags=re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= navigation


def test_the_readme_and_the_benchmarks_are_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 120
    assert len((ROOT / "BENCHMARKS.md").read_bytes()) <= 20_000


def test_the_changelog_has_this_version_with_a_date() -> None:
    versions = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert versions[0] == mmrr.__version__
