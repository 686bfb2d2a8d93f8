"""A symbolic link where a workspace has a folder: one line that names it, and no change behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrr.workspace.store import STAGES
from tests.cli.conftest import Prepared
from tests.console import INDEX, mmrr, refused

KEY = "0" * 24


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every folder (None) and file (its bytes) below one, without following links. The cache of hashes is left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "hashes.json"
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody else, with names that a workspace uses too."""
    folder = tmp_path / "outside"
    for name in ("0123456789ab", KEY, "1-01234567", *STAGES):
        (folder / name / KEY).mkdir(parents=True)
        (folder / name / "letter.txt").write_text("keep")
        (folder / name / KEY / "letter.txt").write_text("keep")
    (folder / "1-01234567.lock").write_text("keep")
    return folder


def commands(copy: Prepared) -> list[tuple[object, ...]]:
    (cached,) = (copy.work / "precache").glob("*")
    pages = next(path for path in (copy.work / "pages").glob("*"))
    rm = ("rm", "--work", copy.work)
    return [
        ("ls", "--work", copy.work),
        rm,
        (*rm, f"precache/{cached.name}"),
        (*rm, f"pages/{pages.name}", "--cascade"),
        ("index", copy.docs, "--work", copy.work, *INDEX),
        ("verify", "--work", copy.work),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tmp", "shards", *STAGES, *(f"shards/{stage}" for stage in STAGES)])
def test_a_link_for_a_folder_of_the_workspace(copy: Prepared, outside: Path, place: str) -> None:
    """The link leads to somebody else's folder, then to the workspace's own folder, which was moved."""
    link = copy.work / place
    all_commands = commands(copy)
    moved = copy.work.parent / "moved"
    if link.exists():
        link.rename(moved)
    for target in (outside, moved):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
        others, before = snapshot(copy.work.parent), snapshot(target)
        for command in all_commands:
            assert f"{link}: found a symbolic link, expected a folder; remove the link" in refused(*command)
        assert snapshot(copy.work.parent) == others
        assert snapshot(target) == before
        link.unlink()
    if moved.exists():
        moved.rename(link)
    mmrr(*all_commands[0])


@pytest.mark.parametrize("stage", ["pages", "precache"])
def test_a_link_for_a_shard(copy: Prepared, outside: Path, stage: str) -> None:
    link = next((copy.work / "shards" / stage).glob("*"))
    moved = link.rename(copy.work.parent / "moved")
    all_commands = commands(copy)
    for target in (moved, outside):
        link.symlink_to(target)
        others, before = snapshot(copy.work.parent), snapshot(target)
        line = f"{link}: found a symbolic link, expected a folder; remove the link"
        for command in all_commands:
            if command[0] == "ls" or (command[0], stage) == ("index", "precache"):
                mmrr(*command)  # it uses no shard of this stage
            elif command[0] == "verify":
                assert line in mmrr(*command, code=1).stderr
            else:
                assert line in refused(*command)
        assert snapshot(copy.work.parent) == others
        assert snapshot(target) == before
        link.unlink()
    link.symlink_to(outside)
    link.rename(link.with_name(KEY))  # a shard that no artifact lists would be removed
    assert f"{KEY}: found a symbolic link" in refused("rm", "--work", copy.work)


def test_a_link_for_an_artifact(copy: Prepared, outside: Path) -> None:
    (link,) = (copy.work / "pages").glob("*")
    all_commands = commands(copy)
    moved = link.rename(copy.work.parent / "moved")
    for target in (moved, outside):
        link.symlink_to(target)
        others, before = snapshot(copy.work.parent), snapshot(target)
        line = f"{link}: found a symbolic link, expected a folder; remove the link"
        for command in all_commands:
            assert line in mmrr(*command, code=1).stderr
        assert snapshot(copy.work.parent) == others
        assert snapshot(target) == before
        link.unlink()
    stray = copy.work / "eval" / "0123456789ab"
    stray.parent.mkdir(exist_ok=True)
    stray.symlink_to(outside)
    before = snapshot(outside)
    assert f"{stray}: found a symbolic link" in refused("rm", "--work", copy.work)
    assert snapshot(outside) == before


def test_a_link_for_a_lock(copy: Prepared, outside: Path) -> None:
    (copy.work / "tmp").mkdir(exist_ok=True)
    link = copy.work / "tmp" / "1-01234567.lock"
    link.symlink_to(outside / "1-01234567.lock")
    before = snapshot(outside)
    for command in commands(copy):
        assert f"{link}: found a symbolic link, expected a file; remove the link" in refused(*command)
    assert snapshot(outside) == before


def test_a_workspace_that_is_reached_through_a_link(copy: Prepared, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to(copy.work)
    for command in commands(copy._replace(work=tmp_path / "named")):
        mmrr(*command)
