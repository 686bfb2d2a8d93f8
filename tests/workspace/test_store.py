"""The workspace: names depend on everything that a result depends on, and a crash leaves the old or the new state.

The tests kill subprocesses in the middle of a commit, and run several that commit the same artifact.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.workspace.files import HashCache, canonical_json, digest, write_atomically
from mmrr.workspace.store import Spec, Workspace
from tests.workspace.helpers import KEY, SPEC, files_in

#: The first lines of each subprocess.
PROLOGUE = """
import os, signal, sys, time
from pathlib import Path
from mmrr.workspace.store import Spec, Workspace
root = Path(sys.argv[1])
spec = Spec("embed", 1, {"n": 1}, {})
key = "0" * 24
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    script = PROLOGUE + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_together(processes: list[subprocess.Popen[str]], root: Path) -> None:
    """Start the processes together, when all are ready. All of them must succeed."""
    deadline = time.monotonic() + 60
    while len(list(root.glob("ready-*"))) < len(processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    (root / "go").touch()
    for process in processes:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr


# Names


@pytest.mark.parametrize(
    "changed",
    [
        {"stage": "prune"},
        {"schema": 2},
        {"config": {"family": "qwen3_vl", "options": {"dim": 64}}},
        {"config": {"family": "qwen3_vl", "options": {"dim": 0, "more": None}}},
        {"inputs": {"pages": "0123456789ac"}},
        {"inputs": {"queries": "0123456789ab"}},
        {"model": {**SPEC.model, "revision": "b" * 40}},
        {"model": {**SPEC.model, "dtype": "bfloat16"}},
        {"model": None},
    ],
)
def test_every_hashed_field_changes_the_fingerprint(changed):
    other = dataclasses.replace(SPEC, **changed)
    assert other.fingerprint != SPEC.fingerprint
    if "inputs" not in changed:  # a shard's key depends on its own inputs
        assert other.shard_key("x") != SPEC.shard_key("x")


def test_a_models_name_and_the_order_of_keys_change_nothing():
    elsewhere = dataclasses.replace(
        SPEC,
        model=dict(reversed({**SPEC.model, "id": "another/name"}.items())),
        config=dict(reversed(SPEC.config.items())),
    )
    assert elsewhere.fingerprint == SPEC.fingerprint
    assert elsewhere.shard_key("x") == SPEC.shard_key("x")


def test_shards_of_different_inputs_differ_and_those_of_different_artifacts_do_not():
    keys = {SPEC.shard_key("a", "b"), SPEC.shard_key("b", "a"), SPEC.shard_key("ab"), SPEC.shard_key("a")}
    assert len(keys) == 4
    assert dataclasses.replace(SPEC, inputs={"pages": "f" * 12}).shard_key("a") == SPEC.shard_key("a")


def test_provenance_is_recorded_and_names_nothing(workspace):
    first = workspace.commit(SPEC, {}, 0, {"seconds": 1})
    assert first.provenance["seconds"] == 1
    assert {"mmrr", "python", "platform", "created"} <= set(first.provenance)
    assert first.fingerprint == SPEC.fingerprint
    second = workspace.commit(SPEC, {}, 0, {"seconds": 2})
    assert second == first  # a committed artifact is never overwritten


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("x"), object(), 1j, torch.tensor(1), {1: "a"}, [{None: 1}]])
def test_what_is_not_json_has_no_name(value):
    with pytest.raises(TypeError):
        canonical_json({"value": value})


def test_integer_keys_are_refused():
    """json.dumps writes {1: 2} as {"1": 2}, so two configurations would share a fingerprint."""
    with pytest.raises(TypeError, match="key 1"):
        digest({"layers": {1: 2}})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_have_no_name(value):
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


def test_canonical_json_tells_values_apart():
    values = [0, 0.0, False, None, "", "0", [], {}, [0], {"0": 0}, "é", "e\u0301"]
    assert len({canonical_json(value) for value in values}) == len(values)


@pytest.mark.parametrize("name", ["../x", "/etc", "0123", "0123456789ab/..", "0123456789AB", "", "0123456789ab\n", "."])
def test_names_that_are_no_hash_never_become_paths(workspace, name):
    for reach in (
        lambda: workspace.find("embed", name),
        lambda: workspace.shard("embed", name),
        lambda: workspace.has_shard("embed", name),
        lambda: workspace.read_shard_file("embed", name, "file.bin"),
    ):
        with pytest.raises(MmrrError, match="not a fingerprint"):
            reach()
    with pytest.raises(MmrrError, match="no stage"):
        workspace.shard("../embed", KEY)


# Interrupted


def test_a_commit_that_fails_while_writing_leaves_nothing(root):
    def write(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("interrupted")

    with Workspace.open(root) as workspace:
        before = files_in(root)
        with pytest.raises(RuntimeError, match="interrupted"):
            workspace.commit(SPEC, {}, 0, write=write)
        assert workspace.find(SPEC.stage, SPEC.fingerprint) is None
        assert workspace.artifacts() == []
        assert len(files_in(root)) == len(before) + 1
    assert files_in(root) == ["mmrr.json"]


KILLED = {
    "while an artifact's files are written": """
        def write(folder):
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        with Workspace.open(root) as workspace:
            workspace.commit(spec, {}, 0, write=write)
    """,
    "between an artifact's manifest and its rename": """
        with Workspace.open(root) as workspace:
            Workspace._move = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            workspace.commit(spec, {}, 0, write=lambda folder: (folder / "half").write_text("half"))
    """,
    "while a shard's files are written": """
        with Workspace.open(root) as workspace:
            (workspace.scratch() / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    "between a shard's record and its rename": """
        with Workspace.open(root) as workspace:
            Workspace._move = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            folder = workspace.scratch()
            (folder / "half").write_text("half")
            workspace.commit_shard("embed", key, folder, {})
    """,
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_process_leaves_nothing_readable_and_the_next_sweeps_the_rest(root, moment):
    process = start(KILLED[moment], root)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, stderr
    assert any(name.endswith("half") for name in files_in(root / "tmp"))  # it died in the middle of the work
    with Workspace.open(root) as workspace:
        assert workspace.artifacts() == []
        assert not workspace.has_shard("embed", KEY)
        assert not any(name.endswith("half") for name in files_in(root))
    assert files_in(root) == ["mmrr.json"]


def test_a_killed_update_of_what_is_current_leaves_the_old_state(root):
    """The temporary file is next to head.json, so the sweep of scratch folders does not remove it."""
    with Workspace.open(root) as workspace:
        workspace.set_current(workspace.commit(SPEC, {}, 0))
    code = """
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        from mmrr.workspace.files import write_atomically
        write_atomically(root / "head.json", "{}")
    """
    process = start(code, root)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    (rest,) = root.glob(".head.json.*")
    with Workspace.open(root) as workspace:
        assert workspace.current("embed").fingerprint == SPEC.fingerprint
        assert rest.exists()  # it may belong to a running command
    os.utime(rest, (time.time() - 7200,) * 2)
    with Workspace.open(root):
        assert not rest.exists()


def test_a_living_processs_files_are_not_swept(root):
    code = """
        with Workspace.open(root) as workspace:
            folder = workspace.scratch()
            (folder / "file").write_text("in the making")
            print("ready", flush=True)
            while not (root / "go").exists():
                time.sleep(0.01)
            workspace.commit_shard("embed", key, folder, {})
    """
    process = start(code, root)
    try:
        assert process.stdout.readline() == "ready\n"
        with Workspace.open(root) as workspace:
            assert workspace.others_running()
            assert any(name.endswith("/file") for name in files_in(root / "tmp"))
            (root / "go").touch()
            _, stderr = process.communicate(timeout=300)
            assert process.returncode == 0, stderr
            assert workspace.read_shard_file("embed", KEY, "file") == b"in the making"
            assert not workspace.others_running()
    finally:
        process.kill()
        process.wait()


def test_a_folder_without_manifest_does_not_exist_and_does_not_stand_in_the_way(workspace):
    """An interrupted removal leaves a folder without a manifest."""
    left = workspace.root / "embed" / SPEC.fingerprint
    left.mkdir(parents=True)
    (left / "run.trec").write_text("old")
    assert workspace.find("embed", SPEC.fingerprint) is None
    manifest = workspace.commit(SPEC, {"pages": 1}, 0)
    assert manifest.content == {"pages": 1}
    assert files_in(left) == ["manifest.json"]


# Concurrent processes


@pytest.mark.slow
def test_two_processes_committing_the_same_things_both_succeed_with_one_result(root):
    code = """
        with Workspace.open(root) as workspace:
            folders = []
            for i in range(20):
                folder = workspace.scratch()
                (folder / "file").write_text(f"shard {i}")
                folders.append(folder)
            (root / f"ready-{sys.argv[2]}").touch()
            while not (root / "go").exists():
                time.sleep(0.001)
            for i, folder in enumerate(folders):
                workspace.commit_shard("embed", f"{i:024x}", folder, {"n": i})
                assert workspace.read_shard_file("embed", f"{i:024x}", "file") == f"shard {i}".encode()
            manifest = workspace.commit(spec, {"n": 20}, 0, write=lambda folder: (folder / "file").write_text("x"))
            assert manifest.content == {"n": 20}
    """
    run_together([start(code, root, name) for name in "ab"], root)
    with Workspace.open(root) as workspace:
        assert [manifest.content for manifest in workspace.artifacts()] == [{"n": 20}]
        assert len(list((root / "shards" / "embed").iterdir())) == 20
        assert workspace.shard_record("embed", f"{7:024x}")["n"] == 7
    assert list((root / "tmp").iterdir()) == []


@pytest.mark.slow
def test_commands_that_make_and_open_one_workspace_at_once_all_succeed(tmp_path):
    """A command must accept the files of another command that makes the same workspace, and wait for a sweep that
    holds its lock for a moment."""
    code = """
        import multiprocessing
        def work(i):
            for _ in range(40):
                with Workspace.open(root, create=True) as workspace:
                    workspace.scratch()
        if __name__ == "__main__":
            fork = multiprocessing.get_context("fork")
            processes = [fork.Process(target=work, args=(i,)) for i in range(6)]
            [process.start() for process in processes]
            [process.join() for process in processes]
            assert [process.exitcode for process in processes] == [0] * 6
    """
    process = start(code, tmp_path / "new" / "work")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert files_in(tmp_path / "new" / "work") == ["mmrr.json"]


@pytest.mark.slow
def test_updates_of_what_is_current_by_two_processes_are_not_lost(root):
    """Each process moves the current artifact of its own stage 200 times; no update is lost."""
    code = """
        stage = sys.argv[2]
        with Workspace.open(root) as workspace:
            two = [workspace.commit(Spec(stage, schema, {}, {}), {}, 0) for schema in (1, 2)]
            (root / f"ready-{stage}").touch()
            while not (root / "go").exists():
                time.sleep(0.001)
            for manifest in two * 100:
                workspace.set_current(manifest)
                assert workspace.current(stage).fingerprint == manifest.fingerprint, "lost"
    """
    run_together([start(code, root, stage) for stage in ("embed", "prune")], root)
    with Workspace.open(root) as workspace:
        for stage in ("embed", "prune"):
            assert workspace.current(stage).fingerprint == Spec(stage, 2, {}, {}).fingerprint


# The folder


def test_no_workspace(tmp_path):
    with pytest.raises(MmrrError, match=rf"no workspace at {tmp_path}/none; make one with: mmrr index"):
        Workspace.open(tmp_path / "none")
    with pytest.raises(MmrrError, match="no workspace at"):
        Workspace.open(tmp_path)
    assert not (tmp_path / "none").exists()


def test_a_file_is_no_workspace(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MmrrError, match=r"file is a file; expected a folder"):
        Workspace.open(tmp_path / "file", create=True)
    with pytest.raises(MmrrError, match=r"cannot be made"):
        Workspace.open(tmp_path / "file" / "inside", create=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_somebodys_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(MmrrError, match="holds other files and no workspace; choose a new or an empty folder"):
        Workspace.open(tmp_path, create=True)
    assert files_in(tmp_path) == ["thesis.tex"]


def test_an_empty_folder_becomes_a_workspace_and_stays_one(tmp_path):
    for _ in range(2):
        with Workspace.open(tmp_path, create=True) as workspace:
            assert workspace.artifacts() == []
    assert files_in(tmp_path) == ["mmrr.json"]


def test_a_workspace_whose_making_was_killed_can_be_made(tmp_path):
    """The temporary file of a killed command does not make the folder someone else's."""
    (tmp_path / ".mmrr.json.0123abcd").write_text("{")
    with Workspace.open(tmp_path, create=True):
        pass
    assert (tmp_path / "mmrr.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_line(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(MmrrError, match="cannot be made"):
        Workspace.open(locked / "work", create=True)
    with pytest.raises(MmrrError, match="cannot be made"):
        Workspace.open(locked, create=True)


def test_writing_a_text_keeps_the_old_one_until_the_new_is_whole(tmp_path):
    path = tmp_path / "text.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["text.json"]


# Hashes of files


def test_the_hash_cache_notices_a_changed_file_of_the_same_size(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    cache = HashCache(tmp_path / "hashes.json")
    first = cache.sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert cache.sha256(path) != first
    assert HashCache(tmp_path / "hashes.json").sha256(path) == cache.sha256(path)


def test_the_hash_cache_reads_a_file_once(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"one")
    cache = HashCache(tmp_path / "hashes.json")
    before = cache.sha256(path)
    cache.save()
    times = path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(times, times))  # the same time and size, so only reading the file shows the change
    assert HashCache(tmp_path / "hashes.json").sha256(path) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", '"x"', "[" * 100_000, '{"KEY": 5}', '{"KEY": "zz"}'])
def test_a_damaged_hash_cache_is_forgotten(tmp_path, damage):
    (tmp_path / "file").write_bytes(b"abc")
    status = (tmp_path / "file").stat()
    key = f"{(tmp_path / 'file').resolve()}|{status.st_size}|{status.st_mtime_ns}"
    (tmp_path / "hashes.json").write_text(damage.replace("KEY", key))
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert HashCache(tmp_path / "hashes.json").sha256(tmp_path / "file") == expected


def test_a_url_is_no_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MmrrError, match="found a URL"):
        Workspace.open(Path("s3://bucket/work"), create=True)
    assert not list(tmp_path.iterdir())
