"""``mmrr rm``: what is left works as before, and nothing of what was removed is left."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmrr.errors import MmrrError
from mmrr.workspace import gc
from mmrr.workspace.files import remove_tree
from mmrr.workspace.gc import remove
from mmrr.workspace.store import Spec, Workspace


@pytest.fixture
def workspace(tmp_path):
    with Workspace.open(tmp_path / "work", create=True) as workspace:
        yield workspace


def shard(workspace, stage, digit, size=100):
    key = digit * 24
    folder = workspace.scratch()
    (folder / "data").write_bytes(b"x" * size)
    workspace.commit_shard(stage, key, folder, {})
    return key


def artifact(workspace, stage, inputs=(), shards=None, variant=0):
    """An artifact that was made of other artifacts and lists shards (by default one new shard)."""
    spec = Spec(stage, 1, {"variant": variant}, {made.stage: made.fingerprint for made in inputs})
    keys = [shard(workspace, stage, f"{variant:x}")] if shards is None else shards
    content = {"documents": [{"shards": keys}]} if stage == "pages" else {"shards": {key: key for key in keys}}
    manifest = workspace.commit(spec, content, 100, write=lambda folder: (folder / "own").write_text("own"))
    workspace.set_current(manifest)
    return manifest


def name(manifest):
    return f"{manifest.stage}/{manifest.fingerprint}"


@pytest.fixture
def chain(workspace):
    """pages -> embed -> prune -> precache, and an index of pages and embed."""
    pages = artifact(workspace, "pages")
    embed = artifact(workspace, "embed", [pages])
    index = artifact(workspace, "index", [pages, embed], [])
    prune = artifact(workspace, "prune", [pages, embed])
    return {"pages": pages, "embed": embed, "index": index, "prune": prune}


def names(workspace):
    return {name(manifest) for manifest in workspace.artifacts()}


def test_what_others_were_made_of_stays(workspace, chain):
    before = names(workspace)
    with pytest.raises(MmrrError, match=rf"is needed by .*{name(chain['prune'])}.*--cascade"):
        remove(workspace, [name(chain["embed"])], cascade=False)
    with pytest.raises(MmrrError, match="needed by"):  # none is removed if one is needed
        remove(workspace, [name(chain["index"]), name(chain["pages"])], cascade=False)
    assert names(workspace) == before
    assert all(workspace.current(stage) for stage in chain)
    assert workspace.has_shard("embed", "0" * 24)


def test_the_end_of_a_chain_goes_alone(workspace, chain):
    size = sum(path.stat().st_size for path in chain["prune"].path.rglob("*"))
    size += sum(path.stat().st_size for path in workspace.shard("prune", "0" * 24).rglob("*"))
    removal = remove(workspace, [name(chain["prune"])], cascade=False)
    assert (removal.artifacts, removal.shards, removal.bytes) == ([name(chain["prune"])], 1, size)
    assert names(workspace) == {name(chain[stage]) for stage in ("pages", "embed", "index")}
    assert not chain["prune"].path.exists()
    assert not workspace.has_shard("prune", "0" * 24)
    assert workspace.has_shard("embed", "0" * 24)


def test_a_cascade_takes_what_was_made_of_it_directly_and_through_others(workspace, chain):
    precache = artifact(workspace, "precache", [chain["prune"]])
    removal = remove(workspace, [name(chain["embed"])], cascade=True)
    gone = [chain["embed"], chain["index"], chain["prune"], precache]
    assert set(removal.artifacts) == {name(manifest) for manifest in gone}
    assert removal.shards == 3
    assert names(workspace) == {name(chain["pages"])}
    assert list((workspace.root / "shards").glob("*/*")) == [workspace.shard("pages", "0" * 24)]


def test_naming_the_whole_rest_of_a_chain_needs_no_cascade(workspace, chain):
    removal = remove(workspace, [name(chain[stage]) for stage in ("embed", "index", "prune")] * 2, cascade=False)
    assert len(removal.artifacts) == 3
    assert names(workspace) == {name(chain["pages"])}


def test_the_ends_of_a_chain_go_first(workspace, chain, monkeypatch):
    """Dependents are removed first, so that an interruption leaves no artifact without its inputs."""
    order = []
    monkeypatch.setattr(gc, "remove_tree", lambda root, path: (order.append(path.parent.name), remove_tree(root, path)))
    remove(workspace, [name(chain[stage]) for stage in ("prune", "pages", "index", "embed")], cascade=False)
    assert order[:4] == ["prune", "index", "embed", "pages"]


def test_shards_that_another_artifact_lists_stay(workspace):
    shared, own = shard(workspace, "pages", "a"), shard(workspace, "pages", "b")
    old = artifact(workspace, "pages", shards=[shared, own], variant=1)
    new = artifact(workspace, "pages", shards=[shared], variant=2)
    assert remove(workspace, [name(old)], cascade=False).shards == 1
    assert workspace.has_shard("pages", shared)
    assert not workspace.has_shard("pages", own)
    remove(workspace, [name(new)], cascade=False)
    assert not workspace.has_shard("pages", shared)


def test_a_shard_that_all_pages_share_belongs_to_its_artifact(workspace):
    """``precache`` lists the cache of the instruction as ``shared``, separate from those of the pages."""
    keys = [shard(workspace, "precache", digit) for digit in "abc"]
    spec = Spec("precache", 1, {}, {})
    manifest = workspace.commit(spec, {"shards": {"pages-key": keys[0]}, "shared": keys[1]}, 0)
    assert remove(workspace, [], cascade=False).shards == 1
    assert [workspace.has_shard("precache", key) for key in keys] == [True, True, False]
    assert remove(workspace, [name(manifest)], cascade=False).shards == 2


def test_a_removed_artifact_is_no_longer_current_and_others_stay(workspace, chain):
    newer = artifact(workspace, "prune", [chain["embed"]], variant=1)
    remove(workspace, [name(chain["prune"])], cascade=False)  # not the current one
    assert workspace.current("prune") == newer
    remove(workspace, [name(newer)], cascade=False)
    assert workspace.current("prune") is None
    assert workspace.current("embed") == chain["embed"]
    again = workspace.commit(Spec("prune", 1, newer.config, newer.inputs), {}, 0)
    assert again.fingerprint == newer.fingerprint
    assert (
        workspace.current("prune") is None
    )  # an artifact that is made again is not current until a step makes it current


def test_nothing_is_removed_while_another_command_works(workspace, chain):
    """No artifact lists the shards of a running command yet."""
    code = """
import sys
from pathlib import Path
from mmrr.workspace.store import Workspace
with Workspace.open(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
"""
    command = [sys.executable, "-c", code, str(workspace.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        orphan = shard(workspace, "embed", "f")
        for doomed in ([], [name(chain["prune"])]):
            with pytest.raises(MmrrError, match="another mmrr command is working"):
                remove(workspace, doomed, cascade=False)
        assert workspace.has_shard("embed", orphan)
        process.communicate("\n", timeout=300)
        removal = remove(workspace, [name(chain["prune"])], cascade=False)
        assert (removal.shards, removal.unlisted) == (1, 1)
        assert workspace.has_shard("embed", orphan)  # the finished work of a command that did not end
    finally:
        process.kill()
        process.wait()


def test_orphans_go_without_naming_anything(workspace, chain):
    shard(workspace, "embed", "e", 1000)  # left by an interrupted command
    workspace.damaged("embed", shard(workspace, "embed", "f", 1000), "a test says so")
    half = workspace.root / "index" / ("d" * 12)  # left by an interrupted removal
    half.mkdir()
    (half / "dense.faiss").write_bytes(b"x" * 1000)
    before = names(workspace)
    removal = remove(workspace, [], cascade=False)
    assert (removal.artifacts, removal.shards) == ([], 2)
    assert removal.bytes >= 3000
    assert names(workspace) == before
    assert sorted(path.name for path in (workspace.root / "shards" / "embed").iterdir()) == ["0" * 24]
    assert not half.exists()
    assert remove(workspace, [], cascade=False).shards == 0


def test_the_work_of_an_interrupted_command_stays_when_an_artifact_is_removed(workspace, chain):
    interrupted = shard(workspace, "precache", "e", 1000)
    workspace.damaged("precache", shard(workspace, "precache", "f"), "a test says so")
    removal = remove(workspace, [name(chain["prune"])], cascade=False)
    assert removal.by_stage == {"prune": 1, "precache": 1}  # that of the artifact, and the damaged one
    assert (removal.unlisted, removal.unlisted_bytes >= 1000) == (1, True)
    assert workspace.has_shard("precache", interrupted)
    assert remove(workspace, [], cascade=False).by_stage == {"precache": 1}


@pytest.mark.parametrize("wrong", ["pages/0123456789ab", "pages", "../work", "pages/../embed", "", "pages/"])
def test_unknown_names(workspace, chain, wrong):
    before = names(workspace)
    with pytest.raises(MmrrError, match=f"no artifact '{wrong}'; expected stage/fingerprint as in: mmrr ls"):
        remove(workspace, [name(chain["prune"]), wrong], cascade=True)
    assert names(workspace) == before


def test_a_damaged_artifact_can_be_removed(workspace, chain):
    """The error of a damaged manifest says to run mmrr rm, so mmrr rm must not fail with it."""
    (chain["prune"].path / "manifest.json").write_text("{")
    (chain["index"].path / "manifest.json").write_text("{")
    with pytest.raises(MmrrError, match=rf"{chain['index'].fingerprint}/manifest\.json is damaged"):
        remove(
            workspace, [name(chain["prune"])], cascade=False
        )  # removed, but the shards of the other artifact are not known
    assert not chain["prune"].path.exists()
    assert workspace.has_shard("prune", "0" * 24)
    removal = remove(workspace, [name(chain["index"])], cascade=False)
    assert removal.artifacts == [name(chain["index"])]
    assert removal.shards == 1  # only the first artifact listed it
    assert names(workspace) == {name(chain["pages"]), name(chain["embed"])}
    assert workspace.current("prune") is None


def test_a_damaged_source_is_still_needed_by_what_was_made_of_it(workspace, chain):
    (chain["embed"].path / "manifest.json").write_text("{")
    with pytest.raises(MmrrError, match=f"needed by .*{name(chain['prune'])}"):
        remove(workspace, [name(chain["embed"])], cascade=False)
    remove(workspace, [name(chain["embed"])], cascade=True)
    assert names(workspace) == {name(chain["pages"])}
