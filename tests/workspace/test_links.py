"""Changes of files below a root folder follow no symbolic link."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest

from mmrr.errors import MmrrError
from mmrr.workspace import files
from mmrr.workspace.files import make_folder, move, remove_file, remove_tree
from mmrr.workspace.gc import remove
from mmrr.workspace.store import Workspace
from tests.workspace.helpers import KEY, SPEC, files_in, put_shard

LINK = "found a symbolic link, expected a folder; remove the link"


@pytest.fixture
def base(tmp_path):
    (tmp_path / "base" / "inner").mkdir(parents=True)
    (tmp_path / "base" / "inner" / "file").write_text("ours")
    return tmp_path / "base"


@pytest.fixture
def outside(tmp_path):
    """A folder of somebody else. Nothing in it may change."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "letter").write_text("keep")
    (tmp_path / "outside" / "letter").write_text("keep")
    yield tmp_path / "outside"
    assert files_in(tmp_path / "outside") == ["deep/letter", "letter"]
    assert (tmp_path / "outside" / "letter").read_text() == "keep"
    assert os.listdir(tmp_path / "outside" / "deep") == ["letter"]


@pytest.fixture(params=["handles", "paths"])
def platform(request, monkeypatch):
    """With handles of folders, and as on a system without them."""
    if request.param == "paths":
        monkeypatch.setattr(os, "supports_dir_fd", set())


CHANGES = {
    "remove_tree": lambda base: remove_tree(base, base / "link" / "deep"),
    "remove_tree that ignores errors": lambda base: remove_tree(base, base / "link" / "deep", ignore_errors=True),
    "remove_tree of the link": lambda base: remove_tree(base, base / "link"),
    "remove_file": lambda base: remove_file(base, base / "link" / "letter"),
    "make_folder": lambda base: make_folder(base, base / "link" / "new"),
    "make_folder far below": lambda base: make_folder(base, base / "link" / "deep" / "new"),
    "move out of it": lambda base: move(base, base / "link" / "deep", base / "mine"),
    "move into it": lambda base: move(base, base / "inner", base / "link" / "new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_link_on_the_way_is_named_and_not_followed(base, outside, platform, change):
    (base / "link").symlink_to(outside)
    with pytest.raises(MmrrError, match=rf"{base}/link: {LINK}"):
        CHANGES[change](base)
    assert files_in(base / "inner") == ["file"]


def test_links_inside_a_folder_are_deleted_themselves(base, outside, platform):
    (base / "inner" / "link").symlink_to(outside)
    (base / "inner" / "letter").symlink_to(outside / "letter")
    remove_file(base, base / "inner" / "letter")
    remove_tree(base, base / "inner")
    assert os.listdir(base) == []


def test_a_folder_that_becomes_a_link_after_the_check_is_not_followed(base, outside, monkeypatch):
    (base / "link").symlink_to(outside)
    monkeypatch.setattr(files, "check_folder", lambda path: None)
    with pytest.raises(OSError, match="symbolic link"):
        remove_tree(base, base / "link")
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        remove_tree(base, base / "link" / "deep")


def test_a_root_that_is_a_link_is_the_users_choice(base, tmp_path, platform):
    (tmp_path / "named").symlink_to(base)
    remove_tree(tmp_path / "named", tmp_path / "named" / "inner")
    assert os.listdir(base) == []


def test_paths_that_leave_the_root_are_refused(base, outside, platform):
    for path in (base / ".." / "outside", outside):
        with pytest.raises(ValueError, match="outside"):
            remove_tree(base, path)


def test_what_is_gone_is_no_error_and_a_file_is_no_folder(base, platform):
    remove_tree(base, base / "none" / "none")
    remove_file(base, base / "none" / "none")
    with pytest.raises(MmrrError, match="found a file, expected a folder; move it out of the workspace"):
        remove_tree(base, base / "inner" / "file")
    make_folder(base, base / "new" / "deep")
    move(base, base / "inner" / "file", base / "more" / "deep" / "file")
    assert files_in(base) == ["more/deep/file"]


# The workspace


def test_a_shard_that_is_a_link_is_neither_read_nor_set_aside_nor_written(workspace, outside):
    link = put_shard(workspace)
    link.rename(workspace.root / "moved")
    for target in (workspace.root / "moved", outside, outside / "none"):
        link.symlink_to(target)
        scratch = workspace.scratch()
        for use in (
            lambda: workspace.has_shard("embed", KEY),
            lambda: workspace.shard_record("embed", KEY),
            lambda: workspace.read_shard_file("embed", KEY, "file.bin"),
            lambda: workspace.damaged("embed", KEY, "a test says so"),
            lambda scratch=scratch: workspace.commit_shard("embed", KEY, scratch, {}),
            lambda: remove(workspace, [], cascade=False),
        ):
            with pytest.raises(MmrrError, match=rf"{link}: {LINK}"):
                use()
        link.unlink()
    assert files_in(workspace.root / "moved") == ["file.bin", "shard.json"]


def test_an_artifact_that_is_a_link_is_neither_read_nor_removed_nor_written(workspace, outside):
    manifest = workspace.commit(SPEC, {}, 0)
    other = put_shard(workspace)
    manifest.path.rename(workspace.root / "moved")
    for target in (workspace.root / "moved", outside):
        manifest.path.symlink_to(target)
        for use in (
            lambda: workspace.find("embed", SPEC.fingerprint),
            lambda: workspace.done(SPEC),
            workspace.artifacts,
            lambda: workspace.commit(SPEC, {}, 0),
            lambda: remove(workspace, [f"embed/{SPEC.fingerprint}"], cascade=True),
            lambda: remove(workspace, [], cascade=False),
        ):
            with pytest.raises(MmrrError, match=rf"{manifest.path}: {LINK}"):
                use()
        manifest.path.unlink()
    assert files_in(workspace.root / "moved") == ["manifest.json"]
    assert other.exists()


def test_a_folder_that_becomes_a_link_while_a_command_works(workspace, outside):
    """The folders are checked when the workspace is opened; each change is checked again."""
    for name in ("shards", "embed"):
        (workspace.root / name).symlink_to(outside)
        scratch = workspace.scratch()
        with pytest.raises(MmrrError, match=rf"{workspace.root}/{name}: {LINK}"):
            workspace.commit_shard("embed", KEY, scratch, {}) if name == "shards" else workspace.commit(SPEC, {}, 0)


def test_a_lock_that_is_a_link(root, outside):
    """Opening a file to lock it would empty it or change its time."""
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp" / "1-01234567.lock").symlink_to(outside / "letter")
    message = r"1-01234567\.lock: found a symbolic link, expected a file; remove the link"
    with pytest.raises(MmrrError, match=message), Workspace.open(root):
        pass
    (root / "tmp" / "1-01234567.lock").unlink()
    with Workspace.open(root) as workspace:
        (root / "head.lock").symlink_to(outside / "letter")
        with pytest.raises(MmrrError, match=r"head\.lock: found a symbolic link, expected a file"):
            workspace.set_current()


def test_the_scratch_folder_of_a_killed_command_that_is_a_link(root, outside):
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp" / "1-01234567.lock").touch()
    (root / "tmp" / "1-01234567").symlink_to(outside)
    with pytest.raises(MmrrError, match=rf"1-01234567: {LINK}"), Workspace.open(root):
        pass


@pytest.mark.parametrize("name", ["..lock", "...lock", "notes.lock", ".lock"])
def test_a_file_that_mmrr_did_not_name_is_no_lock(root, outside, name):
    """The folder of the lock ``...lock`` would be the workspace itself."""
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp" / name).touch()
    (root / "tmp" / "notes").symlink_to(outside)
    with Workspace.open(root) as workspace:
        assert not workspace.others_running()
    assert (root / "tmp" / name).exists()
    assert (root / "mmrr.json").exists()


def test_folders_that_mmrr_did_not_name_are_left_alone(workspace, outside):
    for place in ("eval", "shards/embed"):
        (workspace.root / place / "notes").mkdir(parents=True)
        (workspace.root / place / "link").symlink_to(outside)
    aside = workspace.root / "shards" / "embed" / f"{KEY}.damaged-0123ab"
    aside.mkdir()
    assert remove(workspace, [], cascade=False).shards == 1
    assert not aside.exists()
    for place in ("eval", "shards/embed"):
        assert sorted(os.listdir(workspace.root / place)) == ["link", "notes"]


@pytest.mark.parametrize("name", ["file.bin", "shard.json"])
def test_a_link_in_a_shard_is_not_read(workspace, outside, name):
    """The link has the right bytes. The shard is set aside, and its command computes it again."""
    for use in (
        lambda: workspace.read_shard_file("embed", KEY, "file.bin"),
        lambda: workspace.has_shard("embed", KEY),
    ):
        folder = put_shard(workspace)
        (folder / name).rename(workspace.root / "moved")
        (folder / name).symlink_to(workspace.root / "moved")
        try:
            assert not use()
        except MmrrError as error:
            assert "found a symbolic link, expected a file" in str(error)  # noqa: PT017
        assert not folder.exists()
        assert (workspace.root / "moved").is_file()


def test_a_link_among_an_artifacts_files_is_not_read(workspace, outside):
    manifest = workspace.commit(SPEC, {}, 0, None, lambda folder: (folder / "run.trec").write_text("keep"))
    (manifest.path / "run.trec").unlink()
    (manifest.path / "run.trec").symlink_to(outside / "letter")
    with pytest.raises(MmrrError, match=r"run\.trec is gone or damaged"):
        workspace.own_file(manifest, "run.trec")
    assert workspace.done(SPEC) is None
    manifest = workspace.commit(SPEC, {}, 0, None, lambda folder: (folder / "run.trec").write_text("keep"))
    (manifest.path / "manifest.json").rename(workspace.root / "moved")
    (manifest.path / "manifest.json").symlink_to(workspace.root / "moved")
    with pytest.raises(MmrrError, match=r"manifest\.json is damaged \(found a symbolic link, expected a file\)"):
        workspace.find("embed", SPEC.fingerprint)


@pytest.mark.parametrize("name", ["head.json", "hashes.json"])
def test_a_listing_that_is_a_link_is_neither_read_nor_written(workspace, outside, name):
    (workspace.root / name).symlink_to(outside / "letter")
    with (
        pytest.raises(MmrrError, match=r"head\.json is damaged \(found a symbolic link")
        if name == "head.json"
        else nullcontext()
    ):
        workspace.set_current(workspace.commit(SPEC, {}, 0))
    workspace.hashes.sha256(outside / "letter")
    workspace.hashes.save()
