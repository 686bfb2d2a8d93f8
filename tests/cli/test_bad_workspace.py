"""A wrong, damaged or full workspace, and models that cannot be loaded: one line, and finished work is kept."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Prepared
from tests.console import FP32, INDEX, files, mmrr, refused, shards, write_documents

QUESTION = "When is the thesis due?"


def test_a_folder_that_is_no_workspace(prepared: Prepared, tmp_path: Path) -> None:
    for command in (
        ["rerank", QUESTION],
        ["retrieve", QUESTION],
        ["precache", "--scorer-model", prepared.model],
        ["prune"],
        ["eval", "--qrels", "q"],
        ["ls"],
        ["rm", "index/123456789abc"],
    ):
        assert "no workspace at" in refused(*command, "--work", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "holds other files" in refused("index", prepared.docs, "--work", tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["letter.txt"]
    assert "is a file" in refused("index", prepared.docs, "--work", tmp_path / "mine" / "letter.txt")
    assert "cannot be made" in refused("index", prepared.docs, "--work", tmp_path / "mine" / "letter.txt" / "w")


def test_a_command_without_its_input_names_the_command_to_run_first(tmp_path: Path, prepared: Prepared) -> None:
    work = tmp_path / "w"
    mmrr("render", prepared.docs, "--work", work, *INDEX)
    assert "mmrr index" in refused("precache", "--work", work, "--scorer-model", prepared.model)
    assert "mmrr index" in refused("retrieve", QUESTION, "--work", work)
    mmrr("index", prepared.docs, "--work", work, *INDEX)
    assert "mmrr precache" in refused("rerank", QUESTION, "--work", work)


def test_a_ranking_of_a_single_question_is_not_current_and_the_message_says_so(copy: Prepared) -> None:
    qrels = copy.work.parent / "some.trec"
    qrels.write_text("q1 0 thesis.pdf/0001 1\n")
    command = ("eval", "--no-rerank", "--work", copy.work, "--qrels", qrels)
    assert "has no current retrieve: a single question does not make one" in refused(*command)
    mmrr("retrieve", QUESTION, "--work", copy.work)
    message = refused(*command)
    assert "has no current retrieve: a single question does not make one, but a file of queries does" in message
    assert "run: mmrr retrieve --queries FILE --work" in message
    assert message.removeprefix("error: ") in refused("verify", "--rescore", "1", "--work", copy.work)


@pytest.mark.parametrize("name", ["head.json", "pages/*/manifest.json", "index/*/manifest.json", "pages/*/pages.jsonl"])
def test_damaged_listings_are_named_and_the_advice_repairs_them(copy: Prepared, name: str) -> None:
    (path,) = copy.work.glob(name)
    path.write_text("{ not json")
    message = refused("retrieve", QUESTION, "--work", copy.work)
    assert str(path) in message
    assert "damaged" in message
    if name == "head.json":
        path.unlink()
    elif path.name == "manifest.json":
        mmrr(*message.rsplit("mmrr ", 1)[1].split())
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("retrieve", QUESTION, "--work", copy.work)


def listed(copy: Prepared, code: int = 0) -> dict[str, Any]:
    """The artifacts and problems of ``mmrr ls --json``."""
    shown = json.loads(mmrr("ls", "--work", copy.work, "--json", code=code).stdout)
    return {name: shown[name] for name in ("artifacts", "problems")}


@pytest.mark.parametrize("harm", ["cut", "empty", "digit", "another's", "folder", "deep"])
def test_ls_names_a_damaged_artifact_and_lists_the_others(copy: Prepared, harm: str) -> None:
    (path,) = copy.work.glob("index/*/manifest.json")
    (other,) = copy.work.glob("precache/*/manifest.json")
    text = path.read_text("utf-8")
    rows = listed(copy)["artifacts"]
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        harmed = {
            "cut": text[: len(text) // 2],
            "empty": "",
            "digit": text.replace('"pages": 5', '"pages": 6'),
            "another's": other.read_text("utf-8"),
            "deep": "[" * 100_000,
        }[harm]
        assert harmed != text
        path.write_text(harmed, "utf-8")
    name = f"index/{path.parent.name}"
    shown = mmrr("ls", "--work", copy.work, code=1)
    (line,) = [line for line in shown.stderr.splitlines() if line.startswith("error: ")]
    assert f"{path} is damaged" in line
    assert f"* precache/{other.parent.name}" in shown.stdout
    assert listed(copy, code=1) == {
        "artifacts": [row for row in rows if row["name"] != name],
        "problems": [line.removeprefix("error: ")],
    }
    assert line.removeprefix("error: ") in mmrr("verify", "--work", copy.work, code=1).stderr

    mmrr(*line.rsplit("mmrr ", 1)[1].split())  # as the line says
    assert listed(copy)["problems"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "harm", ["", "{ not json", "[]", "\udcff", '{"pages": 3}', '{"pages": "zz"}', '{"page": "KEY"}']
)
def test_a_damaged_head_is_named_by_ls_and_verify(copy: Prepared, harm: str) -> None:
    path, rows = copy.work / "head.json", listed(copy)["artifacts"]
    path.write_text(harm.replace("KEY", "0" * 12), "utf-8", errors="surrogateescape")
    shown = mmrr("ls", "--work", copy.work, code=1)
    assert f"error: {path} is damaged" in shown.stderr
    assert "* " not in shown.stdout
    assert listed(copy, code=1)["artifacts"] == [{**row, "current": False} for row in rows]
    assert f"{path} is damaged" in mmrr("verify", "--work", copy.work, code=1).stderr
    for command in (["retrieve", QUESTION], ["precache", "--scorer-model", copy.model], ["index", copy.docs, *INDEX]):
        assert f"{path} is damaged" in refused(*command, "--work", copy.work)
    path.unlink()
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("retrieve", QUESTION, "--work", copy.work)
    mmrr("verify", "--work", copy.work)


def test_verify_names_a_head_that_leads_nowhere(copy: Prepared) -> None:
    """One changed digit gives a fingerprint that no artifact has."""
    path = copy.work / "head.json"
    current = json.loads(path.read_text("utf-8"))
    wrong = "".join("01"[digit == "0"] for digit in current["index"])
    path.write_text(json.dumps({**current, "index": wrong}), "utf-8")
    (line,) = json.loads(mmrr("verify", "--work", copy.work, "--json", code=1).stdout)["problems"]
    assert line.startswith(f"{path}: index/{wrong} is current and there is no such artifact; run: mmrr index DOCUMENTS")
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("verify", "--work", copy.work)


def test_the_file_that_marks_a_workspace(copy: Prepared) -> None:
    path = copy.work / "mmrr.json"
    whole = path.read_bytes()
    for harm in (b"", b"{", b'{"schema":7}', b"\xff"):
        path.write_bytes(harm)
        line = mmrr("verify", "--work", copy.work, code=1).stderr
        assert f"{path} is damaged" in line
        assert "replace what is in it by: " + whole.decode() in line
    path.write_text('{"schema": 1}')
    mmrr("verify", "--work", copy.work)


def test_missing_files_are_named(copy: Prepared) -> None:
    (folder,) = copy.work.glob("index/*/bm25*")
    shutil.rmtree(folder)
    assert "run the index command again" in refused("retrieve", QUESTION, "--work", copy.work)
    mmrr("index", copy.docs, "--work", copy.work, *INDEX)
    mmrr("retrieve", QUESTION, "--work", copy.work)
    shard = next((copy.work / "shards" / "precache").glob("*/"))
    shutil.rmtree(shard)
    assert "run the precache command again" in refused("rerank", "thesis soil", "--work", copy.work)
    mmrr("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32)
    mmrr("rerank", "thesis soil", "--work", copy.work)


def test_a_full_disk_is_detected_before_the_work(copy: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(copy.work)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    before = shards(copy.work, "precache")
    command = ("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:6")
    result = mmrr(*command, code=1)
    assert "5 pages, 5 to read" in result.stderr
    assert "1.0 kB free" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: the caches need ")
    assert shards(copy.work, "precache") == before
    monkeypatch.undo()
    mmrr(*command)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "mmrr-test", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_is_one_line_and_the_same_command_continues(small_disk: Path, tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", **{f"doc{i}": [f"page {i} {n}" for n in range(3)] for i in range(4)})
    filler = small_disk / "w" / "filler"
    command = ("index", docs, "--work", small_disk / "w", "--max-tokens", "256", "--workers", "1")
    mmrr("index", docs / "doc0.pdf", "--work", small_disk / "w", "--max-tokens", "256", "--workers", "1")
    whole = files(small_disk / "w")
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)
    result = mmrr(*command, code=1)
    assert result.stderr.splitlines()[-1].startswith("error: the disk is full")
    assert "Traceback" not in result.stderr
    assert {name: kept for name, kept in files(small_disk / "w").items() if name in whole} == whole
    filler.unlink()
    assert "12 pages of 4 documents (4 ok)" in mmrr(*command).stderr
    assert {name: kept for name, kept in files(small_disk / "w").items() if name in whole} == whole


def test_a_write_error_of_the_disk_is_one_line(copy: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs where no small disk can be mounted: the function that writes a shard fails."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mmrr.workspace.store.Workspace.commit_shard", full)
    message = refused("precache", "--work", copy.work, "--scorer-model", copy.model, *FP32, "--band", "0:3")
    assert "the disk is full" in message


# Models


def test_missing_and_unsuitable_models(copy: Prepared, tmp_path: Path) -> None:
    precache = ("precache", "--work", copy.work)
    assert "--scorer-model" in refused(*precache)
    assert "no folder 'nothing here'" in refused(*precache, "--scorer-model", "nothing here")
    assert "HF_HUB_OFFLINE" in refused(*precache, "--scorer-model", "mmrr-tests/not-there")
    assert "no config.json" in refused(*precache, "--scorer-model", copy.docs)
    assert "revision" in refused(*precache, "--scorer-model", copy.model, "--scorer-revision", "main")
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "model.safetensors").touch()
    message = refused(*precache, "--scorer-model", other)
    assert "is a 'bert' model" in message
    assert "qwen3_vl" in message
    assert "is a 'bert' model" in refused("index", copy.docs, "--work", copy.work, "--embedder", other, *INDEX)
    assert "no scorer family 'bert'" in refused(*precache, "--scorer-model", copy.model, "--scorer", "bert")
    assert "--embedder" in refused("index", copy.docs, "--work", copy.work, "--first-stage", "dense")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("harm", ["gone", "cut", "nonsense"])
def test_a_damaged_checkpoint_is_named(copy: Prepared, tmp_path: Path, name: str, harm: str) -> None:
    model = shutil.copytree(copy.model, tmp_path / "model")
    path = model / name
    data = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else b"nonsense")
    message = refused("precache", "--work", copy.work, "--scorer-model", model, *FP32)
    assert str(model) in message


def test_outputs_that_cannot_be_written(prepared: Prepared, tmp_path: Path) -> None:
    before = files(prepared.work)
    (tmp_path / "file").write_text("keep")
    for path in (tmp_path / "no" / "folder" / "run.trec", tmp_path, tmp_path / "file" / "run.trec"):
        for command in ("rerank", "retrieve"):
            message = refused(command, "another thesis question", "--work", prepared.work, "--output", path)
            assert f"--output {path}" in message
    assert files(prepared.work) == before  # the check is before the work


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_permission(prepared: Prepared, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "--output" in refused("rerank", QUESTION, "--work", prepared.work, "--output", locked / "run.trec")
    assert "Permission denied" in refused("index", prepared.docs, "--work", locked / "w")


def test_rm_of_unknown_artifacts(prepared: Prepared) -> None:
    before = files(prepared.work)
    for name in ("index/0123456789ab", "nonsense", "precache", "../docs", "index/../pages"):
        assert f"no artifact '{name}'" in refused("rm", name, "--work", prepared.work)
    assert files(prepared.work) == before
