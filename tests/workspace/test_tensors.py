"""Shard files: reading gives what was written, or an error, and the damaged shard is set aside."""

from __future__ import annotations

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.types import Embedding, KeptTokens
from mmrr.workspace.store import Workspace
from mmrr.workspace.tensors import (
    PageCacheReader,
    Resident,
    read_embeddings,
    read_kept_tokens,
    write_embeddings,
    write_kept_tokens,
    write_page_caches,
)

KEY = "ab" * 12
FILE = "states.safetensors"


@pytest.fixture
def workspace(tmp_path):
    with Workspace.open(tmp_path / "work", create=True) as workspace:
        yield workspace


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def caches_of(pages=("0003", "0004")):
    """Page caches with two layers and two heads; the pages differ in length."""
    return {
        page: {
            "k": random(2, 2, 3 + i, 4, seed=i).bfloat16(),
            "v": random(2, 2, 3 + i, 4, seed=10 + i).bfloat16(),
            "next_pos": torch.tensor(40 + i),
        }
        for i, page in enumerate(pages)
    }


def put_caches(workspace, caches):
    folder = workspace.scratch()
    record = write_page_caches(folder, caches)
    workspace.commit_shard("precache", KEY, folder, record)
    return workspace.shard("precache", KEY) / FILE


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def header_length(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x01
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_embeddings_come_back_by_page_number(workspace, dtype):
    """Pages with different numbers of vectors."""
    written = {
        number: Embedding(random(n, 8, seed=number).to(dtype), random(h * w, seed=20 + number).abs(), (h, w))
        for number, n, h, w in ((17, 1, 2, 3), (18, 5, 4, 1), (30, 2, 1, 1))
    }
    folder = workspace.scratch()
    write_embeddings(folder, written)
    workspace.commit_shard("embed", KEY, folder, {})
    read = read_embeddings(workspace, KEY)
    assert list(read) == [17, 18, 30]
    for number, embedding in written.items():
        assert torch.equal(read[number].vectors, embedding.vectors)
        assert torch.equal(read[number].saliency, embedding.saliency)
        assert read[number].grid == embedding.grid
        assert (read[number].saliency.dtype, read[number].vectors.dtype) == (torch.float32, dtype)


def test_keeps_come_back_by_page_number(workspace):
    written = {
        4: KeptTokens(torch.tensor([0, 2, 5], dtype=torch.int32), (2, 3)),
        5: KeptTokens(torch.tensor([7], dtype=torch.int32), (9, 1)),
    }
    folder = workspace.scratch()
    write_kept_tokens(folder, written)
    workspace.commit_shard("prune", KEY, folder, {})
    read = read_kept_tokens(workspace, KEY)
    assert list(read) == [4, 5]
    for number, keep in written.items():
        assert read[number].indices.tolist() == keep.indices.tolist()
        assert read[number].indices.dtype == torch.int32
        assert read[number].grid == keep.grid


@pytest.mark.parametrize(("stage", "read"), [("embed", read_embeddings), ("prune", read_kept_tokens)])
def test_a_damaged_embedding_or_keep_is_an_error(workspace, stage, read):
    folder = workspace.scratch()
    if stage == "embed":
        write_embeddings(folder, {1: Embedding(random(1, 8), random(6), (2, 3))})
    else:
        write_kept_tokens(folder, {1: KeptTokens(torch.tensor([1, 2], dtype=torch.int32), (2, 3))})
    workspace.commit_shard(stage, KEY, folder, {})
    (path,) = workspace.shard(stage, KEY).glob("*.safetensors")
    flip(path, path.stat().st_size - 1)
    with pytest.raises(MmrrError, match=f"{stage} shard {KEY} is damaged.*checksum"):
        read(workspace, KEY)
    assert not workspace.has_shard(stage, KEY)


def test_states_come_back_as_they_were_down_to_the_type(workspace):
    caches = caches_of()
    put_caches(workspace, caches)
    reader = PageCacheReader(workspace)
    for page in ("0004", "0003", "0004"):
        assert same(reader.read(KEY, page), caches[page])
    assert not same(caches["0003"], caches["0004"])


def test_more_shards_than_stay_open(workspace):
    """The reader keeps at most 64 files open, and opens a closed file again."""
    caches = {}
    for i in range(70):
        cache = {"0001": {"k": torch.full((1, 2), float(i))}}
        folder = workspace.scratch()
        workspace.commit_shard("precache", f"{i:024x}", folder, write_page_caches(folder, cache))
        caches[f"{i:024x}"] = cache["0001"]
    reader = PageCacheReader(workspace)
    for key in (*caches, *reversed(caches)):
        assert same(reader.read(key, "0001"), caches[key])
    assert len(reader._open) == 64


def test_a_flipped_byte_in_the_second_half_is_an_error_for_the_page_it_is_of(workspace):
    """Only the tensors of the page are checked, because a query reads only the pages that it needs."""
    caches = caches_of()
    path = put_caches(workspace, caches)
    flip(path, path.stat().st_size - 1)
    wrong = [page for page in caches if not _reads(workspace, page, caches)]
    assert len(wrong) == 1
    assert not workspace.has_shard("precache", KEY)
    assert len(list(path.parent.parent.glob(f"{KEY}.damaged-*"))) == 1
    put_caches(workspace, caches)  # as the precache command does when it runs again
    assert all(_reads(workspace, page, caches) for page in caches)


def _reads(workspace, page, caches):
    """Whether a page reads as it was written; if not, the error must name the command to run."""
    try:
        cache = PageCacheReader(workspace).read(KEY, page)
    except MmrrError as error:
        message = str(error)
    else:
        assert same(cache, caches[page]), "damage went unnoticed"
        return True
    assert f"precache shard {KEY} is damaged" in message
    assert "run the precache command again" in message
    return False


def test_every_byte_of_the_values_is_guarded(workspace):
    caches = caches_of(("0001",))
    path = put_caches(workspace, caches)
    for position in range(header_length(path), path.stat().st_size):
        flip(path, position)
        assert not _reads(workspace, "0001", caches), position
        path = put_caches(workspace, caches)


def test_no_byte_of_the_header_changes_what_is_read(workspace):
    """I32 in place of F32 in the header changes no byte of the values, so the checksum covers the type."""
    caches = {"0001": {"k": random(2, 3), "v": random(2, 3, seed=1).half(), "n": torch.tensor([3, 4])}}
    path = put_caches(workspace, caches)
    noticed = 0
    for position in range(header_length(path)):
        for bits in (0x01, 0x0F):  # 'F' ^ 0x0F == 'I'
            data = bytearray(path.read_bytes())
            data[position] ^= bits
            path.write_bytes(data)
            try:
                assert same(PageCacheReader(workspace).read(KEY, "0001"), caches["0001"]), position
            except MmrrError:
                noticed += 1
            folder = workspace.shard("precache", KEY)
            if folder.exists():
                workspace.damaged("precache", KEY, "make room")
            path = put_caches(workspace, caches)
    assert noticed > header_length(path)  # some bytes of the padding change nothing


def test_a_type_changed_in_the_header_is_noticed(workspace):
    path = put_caches(workspace, {"0001": {"k": random(2, 3)}})
    data = path.read_bytes()
    assert data.count(b'"F32"') == 1
    path.write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(MmrrError, match=r"0001\.k does not match its checksum"):
        PageCacheReader(workspace).read(KEY, "0001")


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_truncated_file_is_an_error(workspace, left):
    caches = caches_of()
    path = put_caches(workspace, caches)
    path.write_bytes(path.read_bytes()[:left])
    assert not _reads(workspace, "0003", caches)
    assert not workspace.has_shard("precache", KEY)


def test_a_missing_file_is_an_error(workspace):
    caches = caches_of()
    put_caches(workspace, caches).unlink()
    assert not _reads(workspace, "0003", caches)
    assert not workspace.has_shard("precache", KEY)
    with pytest.raises(MmrrError, match=f"shard precache/{KEY} is gone.*run the precache command again"):
        PageCacheReader(workspace).read(KEY, "0003")


def test_a_page_that_is_not_there_is_an_error(workspace):
    put_caches(workspace, caches_of())
    with pytest.raises(MmrrError, match="has no page 0009"):
        PageCacheReader(workspace).read(KEY, "0009")


def test_a_reader_that_met_damage_reads_the_new_shard(workspace):
    caches = caches_of()
    path = put_caches(workspace, caches)
    flip(path, path.stat().st_size - 1)
    reader = PageCacheReader(workspace)
    with pytest.raises(MmrrError, match="checksum"):
        list(map(reader.read, [KEY] * 2, caches))
    put_caches(workspace, caches)
    for page in caches:
        assert same(reader.read(KEY, page), caches[page])


class Counting:
    """A reader that records its calls."""

    def __init__(self, caches):
        self.caches, self.calls = caches, []

    def read(self, key, page):
        self.calls.append(page)
        return self.caches[page]


def test_resident_pages_are_read_once_and_the_one_used_longest_ago_goes_first():
    caches = caches_of(("a", "b", "c"))
    size = max(sum(tensor.nbytes for tensor in cache.values()) for cache in caches.values())
    files = Counting(caches)
    resident = Resident(files, torch.device("cpu"), 2 * size)
    for page in "abaacab":
        assert same(resident.read(KEY, page), caches[page])
    assert files.calls == ["a", "b", "c", "b"]
    kept = resident.read(KEY, "b")
    assert all(kept[name].data_ptr() != caches["b"][name].data_ptr() for name in kept)


@pytest.mark.parametrize("room", [0, 100])
def test_pages_that_do_not_fit_are_read_every_time(room):
    files = Counting(caches_of(("a",)))
    resident = Resident(files, torch.device("cpu"), room)
    resident.read(KEY, "a")
    resident.read(KEY, "a")
    assert files.calls == ["a", "a"]
