"""The cache of file hashes: how often it is written, and what a crash or a damaged file costs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mmrr.context import Context
from mmrr.stages._sources import content_hashes, find_documents
from mmrr.types import silent
from mmrr.workspace import files
from mmrr.workspace.files import HashCache
from mmrr.workspace.store import Workspace
from tests.pdfs import make_pdf


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each write of a ``hashes.json``."""
    sizes: list[int] = []
    write = files.write_atomically

    def count(path: Path, content: str | bytes) -> None:
        if path.name == "hashes.json":
            sizes.append(len(content))
        write(path, content)

    monkeypatch.setattr(files, "write_atomically", count)
    return sizes


def some_files(folder: Path, n: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i}.bin" for i in range(n)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    return paths


def test_a_batch_of_files_is_one_write(tmp_path: Path, writes: list[int]) -> None:
    paths = some_files(tmp_path / "in", 500)
    cache = HashCache(tmp_path / "hashes.json")
    assert [cache.sha256(path) for path in paths] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    cache.save()
    cache.save()
    assert len(writes) == 1
    known = json.loads((tmp_path / "hashes.json").read_text())
    stat = paths[7].stat()
    assert known[f"{paths[7].resolve()}|{stat.st_size}|{stat.st_mtime_ns}"] == hashlib.sha256(b"7").hexdigest()
    again = HashCache(tmp_path / "hashes.json")
    for path in paths:
        again.sha256(path)
    again.save()
    assert len(writes) == 1  # nothing is new


def test_a_long_batch_is_written_every_few_seconds(
    tmp_path: Path, writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a crash loses the hashes of a few seconds."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    cache = HashCache(tmp_path / "hashes.json")
    for path in some_files(tmp_path / "in", 100):
        now[0] += 0.25
        cache.sha256(path)
    assert len(writes) == 5  # 25 s
    assert len(json.loads((tmp_path / "hashes.json").read_text())) == 100


def test_a_folder_is_hashed_with_a_bar_and_one_write(tmp_path: Path, writes: list[int]) -> None:
    (tmp_path / "docs").mkdir()
    for n in range(30):
        (tmp_path / f"docs/{n}.pdf").write_bytes(make_pdf([f"page {n}"]))
    bars: list[tuple[str, int]] = []

    def progress(description: str, total: int):
        bars.append((description, total))
        return silent(description, total)

    with Workspace.open(tmp_path / "work", create=True) as workspace:
        context = Context(workspace, progress=progress)
        sources = find_documents(context, [tmp_path / "docs"], None).sources
        assert len(content_hashes(context, sources)) == 30
    assert ("hash", 30) in bars
    assert len(writes) == 1


def test_a_command_that_fails_keeps_the_hashes(root: Path, tmp_path: Path, writes: list[int]) -> None:
    (path,) = some_files(tmp_path / "in", 1)

    def interrupted() -> None:
        with Workspace.open(root) as workspace:
            workspace.hashes.sha256(path)
            assert writes == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(json.loads((root / "hashes.json").read_text())) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '"text"'])
def test_a_damaged_file_costs_time_alone(tmp_path: Path, content: str) -> None:
    (path,) = some_files(tmp_path / "in", 1)
    (tmp_path / "hashes.json").write_text(content)
    assert HashCache(tmp_path / "hashes.json").sha256(path) == hashlib.sha256(b"0").hexdigest()


def test_without_a_path_the_hashes_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    monkeypatch.setattr("mmrr.workspace.files.write_atomically", lambda *_: pytest.fail("a file was written"))
    hashes = HashCache()
    first = hashes.sha256(file)
    hashes.save()
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("the file was read again"))
    assert hashes.sha256(file) == first
