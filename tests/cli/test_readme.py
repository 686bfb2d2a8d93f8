"""The README tells the truth about files and commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmrr.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_module_has_its_line_in_the_tree():
    tree = README.split("## Files")[1].split("How things are stored")[0]
    folder, named = "", set()
    for line in tree.splitlines():
        if found := re.match(r"    ( *)([\w/]+(?:\.py|/))(?: |$)", line):
            indent, name = found.groups()
            if not indent:
                folder = name
            else:
                named.add(folder + name)
    there = {
        path.relative_to(ROOT).as_posix()
        for top in ("mmrr", "cli")
        for path in (ROOT / top).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


def test_every_command_it_shows_exists():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    shown = set(re.findall(r"(?:^    |`)mmrr ([a-z]+)", README, flags=re.MULTILINE))
    assert {"index", "precache", "rerank", "eval"} <= shown
    assert shown <= commands


@pytest.mark.parametrize("name", re.findall(r"\]\(((?:docs|[A-Z]+)[\w/.]+)\)", README))
def test_every_link_leads_to_a_file(name):
    assert (ROOT / name).is_file()
