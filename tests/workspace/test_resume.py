"""Commands that are killed, interrupted, run together, or find damage: finished work is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.console import (
    FP32,
    INDEX,
    artifact,
    copy_workspace,
    files,
    manifest,
    mmrr,
    refused,
    shards,
    write_documents,
    write_queries,
)

N_DOCUMENTS = 5
#: Tiny models are too fast to be interrupted, so this program waits 0.15 s before each rename.
#: It also restores Ctrl-C: a shell that runs the tests in the background may have switched it off for its children.
SLOWLY = """
import signal, time
from mmrr.workspace.store import Workspace
signal.signal(signal.SIGINT, signal.default_int_handler)
move = Workspace._move
def slowly(*args):
    time.sleep(0.15)
    move(*args)
Workspace._move = slowly
from mmrr.cli.main import main
main()
"""


class Made(NamedTuple):
    root: Path
    embedder: Path
    reranker: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def index(self) -> tuple[object, ...]:
        options = ("--embedder", self.embedder, *INDEX, *FP32)
        return ("index", self.root / "docs", "--work", self.work, *options)

    @property
    def text_index(self) -> tuple[object, ...]:
        """Without an embedder, so no model is loaded and the process starts quickly."""
        return ("index", self.root / "docs", "--work", self.work, *INDEX)

    @property
    def precache(self) -> tuple[object, ...]:
        return ("precache", "--work", self.work, "--scorer-model", self.reranker, *FP32)

    def rerank(self) -> bytes:
        """Rerank all queries; the bytes of the run."""
        output = self.root / "run.trec"
        mmrr("rerank", "--queries", self.root / "q.jsonl", "--work", self.work, "--output", output)
        return output.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path) -> Made:
    """The chain up to the run, without interruptions. Tests must not change it."""
    made = Made(tmp_path_factory.mktemp("undisturbed"), tiny_embedder_path, tiny_path)
    texts = {f"doc{i}": [f"page {n} of document {i} on tides and wind" for n in (1, 2)] for i in range(N_DOCUMENTS)}
    write_documents(made.root / "docs", **texts)
    write_queries(made.root / "q.jsonl", ("q1", "tides on page 2"), ("q2", "wind of document 3"), ("q3", "harbour"))
    mmrr(*made.index)
    mmrr(*made.precache)
    assert made.rerank()
    return made


@pytest.fixture
def fresh(undisturbed: Made, tmp_path: Path) -> Made:
    """The same documents and queries without a workspace."""
    shutil.copytree(undisturbed.root / "docs", tmp_path / "docs")
    shutil.copy(undisturbed.root / "q.jsonl", tmp_path)
    return undisturbed._replace(root=tmp_path)


@pytest.fixture
def copy(undisturbed: Made, tmp_path: Path) -> Made:
    copy_workspace(undisturbed.root, tmp_path / "copy")
    return undisturbed._replace(root=tmp_path / "copy")


@contextmanager
def started(*args: object, alone: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A slowed command in a separate process; it is killed if the test leaves it running.

    With ``alone`` it leads a process group, as a command in a terminal does.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=alone,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=300)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"it ended too early:\n{process.communicate()}"
        assert time.monotonic() < deadline, "nothing happened in a minute"
        time.sleep(0.01)


def kill_when(process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
    wait_until(condition, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_precache_killed_half_way_goes_on_from_there(undisturbed: Made, fresh: Made) -> None:
    mmrr(*fresh.index)
    with started(*fresh.precache) as process:
        kill_when(process, lambda: len(shards(fresh.work, "precache")) >= 3)
    assert not list(fresh.work.glob("precache/*"))
    finished = {name: kept for name, kept in files(fresh.work).items() if name.startswith("shards/precache/")}
    assert 3 * 2 <= len(finished) < (N_DOCUMENTS + 1) * 2

    result = mmrr(*fresh.precache)
    left = (N_DOCUMENTS - (len(finished) // 2 - 1)) * 2  # pages; one shard is the instruction's
    assert f"{2 * N_DOCUMENTS} pages, {left} to read" in result.stderr
    after = files(fresh.work)
    assert {name: after[name] for name in finished} == finished
    assert shards(fresh.work, "precache") == shards(undisturbed.work, "precache")
    assert fresh.rerank() == (undisturbed.root / "run.trec").read_bytes()
    assert not [path for path in (fresh.work / "tmp").rglob("*") if path.is_file()]  # the unfinished shard was removed


@pytest.mark.parametrize("stage", ["pages", pytest.param("embed", marks=pytest.mark.slow)])
def test_index_killed_half_way_goes_on_from_there(undisturbed: Made, fresh: Made, stage: str) -> None:
    with started(*fresh.index) as process:
        kill_when(process, lambda: len(shards(fresh.work, stage)) >= 2)
    finished = {name: kept for name, kept in files(fresh.work).items() if name.startswith("shards/")}
    assert 2 <= len(shards(fresh.work, stage)) < N_DOCUMENTS
    assert not list(fresh.work.glob("index/*"))
    assert "run: mmrr index" in refused("retrieve", "tides", "--work", fresh.work)

    mmrr(*fresh.index)
    after = files(fresh.work)
    assert {name: after[name] for name in finished} == finished
    mmrr(*fresh.precache)
    assert fresh.rerank() == (undisturbed.root / "run.trec").read_bytes()


def test_processes_that_render_end_with_a_killed_command(fresh: Made) -> None:
    with started(*fresh.text_index, "--workers", "2") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.parent.exists():
            pytest.skip("no /proc to look for processes in")
        workers: list[str] = []

        def rendering() -> bool:
            workers[:] = children.read_text().split()
            return bool(shards(fresh.work, "pages"))

        kill_when(process, rendering)
    assert len(workers) >= 2
    assert_all_end(workers)


def assert_all_end(processes: list[str]) -> None:
    """Wait up to 20 seconds for these processes to end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(is_running(pid) for pid in processes):
        time.sleep(0.05)
    assert [pid for pid in processes if is_running(pid)] == []


def assert_stopped(process: subprocess.Popen[str]) -> None:
    """Ctrl-C gives exit code 130 and one line."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("stopped; finished work is kept")


def is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_an_interrupt_is_one_line_and_exit_code_130(undisturbed: Made, fresh: Made) -> None:
    mmrr(*fresh.index)
    with started(*fresh.precache) as process:
        wait_until(lambda: len(shards(fresh.work, "precache")) >= 2, process)
        process.send_signal(signal.SIGINT)
        assert_stopped(process)
    finished = files(fresh.work)
    mmrr(*fresh.precache)
    after = files(fresh.work)
    assert {name: after[name] for name in finished} == finished
    assert fresh.rerank() == (undisturbed.root / "run.trec").read_bytes()


def test_an_interrupt_while_rendering_is_one_line_too(fresh: Made) -> None:
    """Ctrl-C reaches every process of the group, and so the processes that render."""
    with started(*fresh.text_index, "--workers", "2", alone=True) as process:
        wait_until(lambda: shards(fresh.work, "pages"), process)
        os.killpg(process.pid, signal.SIGINT)
        assert_stopped(process)


@pytest.mark.slow
def test_two_commands_at_once_on_one_workspace(undisturbed: Made, fresh: Made) -> None:
    mmrr(*fresh.index)
    with started(*fresh.precache) as one, started(*fresh.precache) as two:
        outputs = [process.communicate(timeout=300) for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert shards(fresh.work, "precache") == shards(undisturbed.work, "precache")
    assert fresh.rerank() == (undisturbed.root / "run.trec").read_bytes()


@pytest.mark.slow
def test_a_workspace_can_be_begun_by_two_commands_at_once(undisturbed: Made, fresh: Made) -> None:
    with started(*fresh.text_index) as one, started(*fresh.text_index) as two:
        outputs = [process.communicate(timeout=300) for process in (one, two)]
        assert [one.returncode, two.returncode] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert shards(fresh.work, "pages") == shards(undisturbed.work, "pages")
    mmrr(*fresh.index)
    mmrr(*fresh.precache)
    assert fresh.rerank() == (undisturbed.root / "run.trec").read_bytes()


def test_nothing_is_removed_under_a_command_at_work(fresh: Made) -> None:
    with started(*fresh.text_index) as process:
        wait_until(lambda: shards(fresh.work, "pages"), process)
        assert "another mmrr command is working" in refused("rm", "--work", fresh.work)
        process.communicate(timeout=300)
        assert process.returncode == 0
    mmrr("rm", "--work", fresh.work)


# Damage


def test_one_changed_byte_in_a_cache_is_noticed_and_mended(copy: Made) -> None:
    """The byte is in the second half of the file, and the size stays the same."""
    run = (copy.root / "run.trec").read_bytes()
    (cached,) = copy.work.glob("precache/*")
    key = next(iter(manifest(cached)["content"]["shards"].values()))
    states = copy.work / "shards" / "precache" / key / "states.safetensors"
    others = {name: kept for name, kept in files(copy.work).items() if key not in name}
    data = bytearray(states.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    states.write_bytes(data)

    query = ("rerank", "tides never asked before", "--work", copy.work)
    message = refused(*query)
    assert key in message
    assert "does not match its checksum" in message
    assert "precache" in message

    result = mmrr(*copy.precache)
    assert f"{2 * N_DOCUMENTS} pages, 2 to read" in result.stderr
    assert artifact(result) == cached
    after = files(copy.work)
    assert {name: after[name] for name in others} == others
    mmrr(*query)
    shutil.rmtree(copy.work / "rerank")
    shutil.rmtree(copy.work / "shards" / "rerank")
    assert copy.rerank() == run


@pytest.mark.parametrize("stage", ["pages", "embed", "prune"])
@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_damage_further_up_is_noticed_and_mended_by_the_commands(copy: Made, stage: str, harm: str) -> None:
    """The command in the message repairs the damage; new caches of the repaired data give the old scores."""
    name = {"pages": "0002.png", "embed": "embeddings.safetensors", "prune": "keep.safetensors"}[stage]
    path = sorted((copy.work / "shards" / stage).glob(f"*/{name}"))[0]
    data = path.read_bytes()
    if harm == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        shutil.rmtree(path.parent)
    for used in ("precache", "rerank"):
        shutil.rmtree(copy.work / used)
        shutil.rmtree(copy.work / "shards" / used)
    if stage == "embed":
        shutil.rmtree(copy.work / "prune")
        shutil.rmtree(copy.work / "shards" / "prune")
    if stage != "prune" or harm == "changed":  # else precache itself makes the shard again
        assert "again" in refused(*copy.precache)
    if stage != "prune":
        mmrr(*copy.index)
    mmrr(*copy.precache)
    assert path.exists()
    assert path.read_bytes() == data
    assert copy.rerank() == (copy.root / "run.trec").read_bytes()
