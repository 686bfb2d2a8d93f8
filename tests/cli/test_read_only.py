"""Commands that read a workspace work where it cannot be written, and say what is not kept."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mmrr.cli.terminal import SCHEMA
from mmrr.workspace import scratch
from tests.cli.chain import Chain
from tests.console import copy_workspace, mmrr, refused, write_queries

NOT_KEPT = "cannot be written: the result is not kept in it"


def everything(work: Path) -> dict[str, tuple[int, int]]:
    """(size, modification time) of each file and folder."""
    found = {path.relative_to(work).as_posix(): path.lstat() for path in work.rglob("*")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


@pytest.fixture(scope="module")
def whole(made: Chain, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A copy that these tests share: none of them can write it."""
    root = copy_workspace(made.root, tmp_path_factory.mktemp("read-only") / "copy")
    return Chain(root, made.embedder, made.reranker)


@pytest.fixture(params=[errno.EROFS, errno.EACCES])
def locked(whole: Chain, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A workspace whose files and folders cannot be written, also for root. The test fails if something changed."""
    open_ = os.open

    def refuse(path: object, flags: int, *args: object, **options: object) -> int:
        inside = str(path).startswith(str(whole.work)) or options.get("dir_fd") is not None
        if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(request.param, os.strerror(request.param), str(path))
        return open_(path, flags, *args, **options)  # type: ignore[arg-type]

    def no_lock(self: object) -> None:
        raise OSError(request.param, os.strerror(request.param), str(whole.work / "tmp"))

    opened = scratch.Scratch.open
    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(
        scratch.Scratch, "open", lambda self: no_lock(self) if self._root == whole.work else opened(self)
    )
    return whole


def test_what_only_reads_says_nothing(locked: Chain, tmp_path: Path) -> None:
    before = everything(locked.work)
    for command in (("ls",), ("ls", "--documents"), ("verify",)):
        assert mmrr(*command, "--work", locked.work).stderr == ""
    mmrr("view", "thesis.pdf/0001", "--work", locked.work, "--output", tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 0
    assert everything(locked.work) == before


def test_what_was_made_before_is_found(locked: Chain) -> None:
    command = ("--queries", locked.queries, "--work", locked.work)
    before = everything(locked.work)
    for found in (mmrr("rerank", *command), mmrr("eval", "--qrels", locked.qrels, "--work", locked.work)):
        assert NOT_KEPT not in found.stderr
        assert Path(found.stdout.splitlines()[-1]).is_relative_to(locked.work)
    assert everything(locked.work) == before


def test_a_new_question_is_answered_and_not_kept(locked: Chain, tmp_path: Path) -> None:
    before = everything(locked.work)
    for name in ("retrieve", "rerank"):
        command = (name, "a cover for rainfall", "--work", locked.work)
        found = mmrr(*command)
        assert [line for line in found.stderr.splitlines() if NOT_KEPT in line] == [
            f"{locked.work} cannot be written: the result is not kept in it"
        ]
        assert "rainfall" in found.stdout
        assert not found.stdout.splitlines()[-1].startswith("/"), "the folder is gone"
        document = json.loads(mmrr(*command, "--json").stdout)
        assert document["schema"] == SCHEMA
        assert document["artifact"] is None
        assert len(document["queries"][0]["results"]) == 5
    queries = write_queries(tmp_path / "q.jsonl", ("n1", "sensors of a thesis"))
    found = mmrr("rerank", "--queries", queries, "--work", locked.work, "--output", tmp_path / "run.trec")
    assert "current:" not in found.stderr
    (tmp_path / "qrels").write_text("n1 0 soil.pdf/0003 1\n")
    judged = mmrr("eval", "--run", tmp_path / "run.trec", "--qrels", tmp_path / "qrels", "--work", locked.work)
    assert "nDCG@5" in judged.stdout
    assert everything(locked.work) == before


def test_the_same_scores_as_in_a_workspace_that_can_be_written(
    locked: Chain, made: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = write_queries(tmp_path / "q.jsonl", ("n1", "formatting of an appendix"))
    runs = []
    for work in (locked.work, copy_workspace(made.root, tmp_path / "copy") / "work"):
        mmrr("rerank", "--queries", queries, "--work", work, "--output", tmp_path / "run.trec")
        runs.append((tmp_path / "run.trec").read_bytes())
    assert runs[0] == runs[1]


def test_commands_that_write_are_refused(locked: Chain) -> None:
    for command in (("index", locked.docs), ("precache", "--scorer-model", locked.reranker), ("prune",), ("rm",)):
        message = refused(*command, "--work", locked.work)
        assert f"{locked.work} cannot be written: " in message
