"""Damage to a workspace is named when it is read, and the damaged shard is set aside."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.workspace.store import Spec, Workspace
from mmrr.workspace.tensor_files import checksum_tensor
from tests.workspace.helpers import KEY, SPEC, put_shard


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'"text"', b"\xff\xfe", b"{}", b'{"stage": "embed"}', b"null"])
def test_damaged_listings_are_named(workspace, damage):
    manifest = workspace.commit(SPEC, {}, 0)
    folder = put_shard(workspace)
    workspace.set_current(manifest)

    (manifest.path / "manifest.json").write_bytes(damage)
    for read in (lambda: workspace.find("embed", SPEC.fingerprint), workspace.artifacts):
        with pytest.raises(MmrrError, match=rf"{SPEC.fingerprint}/manifest\.json is damaged"):
            read()
    (folder / "shard.json").write_bytes(damage)
    with pytest.raises(MmrrError, match=rf"embed shard {KEY} is damaged: shard\.json"):
        workspace.read_shard_file("embed", KEY, "file.bin")
    assert not workspace.has_shard("embed", KEY)
    if b"{}" not in damage and b"stage" not in damage:
        (workspace.root / "head.json").write_bytes(damage)
        for update in (lambda: workspace.current("embed"), lambda: workspace.set_current(manifest)):
            with pytest.raises(MmrrError, match=r"head\.json is damaged"):
                update()


def test_a_changed_digit_in_a_listing_is_noticed(workspace):
    """The changed listing is still valid JSON; only the checksum finds the change."""
    manifest = workspace.commit(SPEC, {"pages": 98765}, 0)
    folder = put_shard(workspace, logits={"a": 1.25})
    for path, old, new in (
        (manifest.path / "manifest.json", "98765", "98764"),
        (folder / "shard.json", "1.25", "7.25"),
    ):
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        json.loads(path.read_text())
    with pytest.raises(MmrrError, match=r"manifest\.json is damaged"):
        workspace.find("embed", SPEC.fingerprint)
    with pytest.raises(MmrrError, match=r"shard\.json"):
        workspace.shard_record("embed", KEY)


def test_one_flipped_byte_anywhere_in_a_shard_is_noticed_and_the_shard_set_aside(workspace):
    data = bytes(range(64))
    path = put_shard(workspace, data=data)
    for name in ("file.bin", "shard.json"):
        for position in range((path / name).stat().st_size):
            changed = bytearray((path / name).read_bytes())
            changed[position] ^= 0x10
            (path / name).write_bytes(changed)
            with pytest.raises(MmrrError, match=f"embed shard {KEY} is damaged.*run the index command again"):
                workspace.read_shard_file("embed", KEY, "file.bin")
            assert not workspace.has_shard("embed", KEY)
            put_shard(workspace, data=data)  # as the command does when it runs again
            assert workspace.read_shard_file("embed", KEY, "file.bin") == data


def test_missing_files_of_a_shard(workspace):
    path = put_shard(workspace)
    with pytest.raises(MmrrError, match=r"other\.bin is missing"):
        workspace.read_shard_file("embed", KEY, "other.bin")
    path = put_shard(workspace)
    (path / "file.bin").unlink()
    with pytest.raises(MmrrError, match=r"file\.bin is missing"):
        workspace.read_shard_file("embed", KEY, "file.bin")
    with pytest.raises(MmrrError, match=f"shard embed/{KEY} is gone.*run the index command again"):
        workspace.read_shard_file("embed", KEY, "file.bin")


def test_an_artifact_whose_shard_is_gone_is_not_done(workspace):
    """The command must not stop at the manifest: the error told the user to run it again."""
    put_shard(workspace)
    workspace.commit(SPEC, {"shards": {"page": KEY}}, 4)
    assert workspace.done(SPEC) == workspace.find(SPEC.stage, SPEC.fingerprint)
    assert workspace.done(dataclasses.replace(SPEC, schema=2)) is None
    workspace.damaged("embed", KEY, "a test says so")
    assert workspace.done(SPEC) is None
    put_shard(workspace)
    assert workspace.commit(SPEC, {"shards": {"page": KEY}}, 4) == workspace.done(SPEC)


@pytest.mark.parametrize("name", ["file.bin", "second.bin", "shard.json"])
@pytest.mark.parametrize("harm", ["cut", "emptied", "longer", "gone", "folder"])
def test_a_shard_with_a_file_of_another_size_is_not_there(workspace, name, harm):
    """It is set aside, so that the shard that is computed again can take its place."""

    def put():
        folder = workspace.scratch()
        (folder / "file.bin").write_bytes(b"data")
        (folder / "second.bin").write_bytes(b"more data")
        workspace.commit_shard("embed", KEY, folder, {"files": {"second.bin": {"bytes": 9}}})

    put()
    manifest = workspace.commit(SPEC, {"shards": {"page": KEY}}, 13)
    assert workspace.done(SPEC) == manifest
    path = workspace.shard("embed", KEY) / name
    whole = path.read_bytes()
    if harm in ("gone", "folder"):
        path.unlink()
        if harm == "folder":
            path.mkdir()
    else:
        path.write_bytes({"cut": whole[:-1], "emptied": b"", "longer": whole + b" !"}[harm])
    assert not workspace.has_shard("embed", KEY)
    assert workspace.done(SPEC) is None
    put()
    assert path.read_bytes() == whole
    assert workspace.done(SPEC) == manifest
    n_aside = len(list((workspace.root / "shards" / "embed").glob("*.damaged-*")))
    assert n_aside == (0 if (name, harm) == ("shard.json", "gone") else 1)


def test_asking_for_a_shard_costs_one_question_a_file(workspace, monkeypatch):
    """The folder, the record, and the size of each file; no file but the record is opened."""
    folder = workspace.scratch()
    for i in range(16):
        (folder / f"{i}.png").write_bytes(b"x" * i)
    workspace.commit_shard("pages", KEY, folder, {})
    asked, opened = [], []
    stat, open_ = os.stat, os.open
    monkeypatch.setattr(os, "stat", lambda path, **how: (asked.append(path), stat(path, **how))[1])
    monkeypatch.setattr(os, "open", lambda path, *how, **named: (opened.append(path), open_(path, *how, **named))[1])
    assert workspace.has_shard("pages", KEY)
    monkeypatch.undo()
    assert len(asked) == 1 + 16
    assert [os.path.basename(path) for path in opened] == ["shard.json"]


def test_sizes_count_each_shard_once(workspace):
    put_shard(workspace, "1" * 24, b"12345")
    put_shard(workspace, "2" * 24, b"123")
    assert workspace.shard_bytes("embed", ["1" * 24, "2" * 24, "1" * 24]) == 8


def test_a_tensors_checksum_knows_its_type_and_shape():
    """The same bytes with another type or shape are other numbers."""
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    others = [tensor.view(torch.int32), tensor.view(4), tensor.T.contiguous(), tensor.clone().fill_(1)]
    assert len({checksum_tensor(one) for one in (tensor, *others)}) == 5
    assert checksum_tensor(tensor.T) == checksum_tensor(tensor.T.contiguous())  # strides do not count
    assert checksum_tensor(torch.tensor(7)) != checksum_tensor(torch.tensor([7]))
    assert checksum_tensor(tensor.bfloat16()) != checksum_tensor(tensor.half())


def test_an_artifacts_own_files_are_checked_when_read(tmp_path):
    """A run with a changed digit is still a valid run; only the checksum finds the change."""
    spec = Spec("retrieve", 1, {}, {"pages": "0" * 12})
    with Workspace.open(tmp_path / "w", create=True) as workspace:

        def write(folder):
            (folder / "run.trec").write_text("q Q0 a.pdf/0001 1 2.5 mmrr\n")
            (folder / "bm25").mkdir()
            (folder / "bm25" / "data.npy").write_bytes(b"0123456789")

        manifest = workspace.commit(spec, {}, 0, write=write)
        assert workspace.own_file(manifest, "run.trec").read_text().startswith("q Q0")
        assert workspace.own_file(manifest, "bm25").is_dir()
        (manifest.path / "bm25" / "data.npy").write_bytes(b"0123406789")
        with pytest.raises(MmrrError, match=r"data\.npy is gone or damaged; run the retrieve command"):
            workspace.own_file(manifest, "bm25")
        workspace.own_file(manifest, "run.trec")
        (manifest.path / "run.trec").unlink()
        with pytest.raises(MmrrError, match=r"run\.trec is gone"):
            workspace.own_file(manifest, "run.trec")
        assert workspace.find("retrieve", spec.fingerprint)
        assert workspace.done(spec) is None  # withdrawn: the stage makes it again
        assert workspace.find("retrieve", spec.fingerprint) is None
        workspace.commit(spec, {}, 0, write=write)
        assert workspace.done(spec)
