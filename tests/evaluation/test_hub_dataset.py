"""Reading parquet files: the images stream, every error names the file, and offline only the cache is used."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation import hub_dataset, mmdocir
from mmrr.evaluation.mmdocir import iter_pages, open_benchmark
from tests.evaluation.mmdocir_files import jpeg, pages_table


def test_images_are_streamed_in_small_batches(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is one row group, as pandas writes it. The reader must not decode all of it for one page."""
    batches: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        for batch in iter_batches(self, *args, **kwargs):
            if batch.schema.names == ["image_binary"]:
                batches.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(hub_dataset, "_BATCH_IMAGES", 2)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    benchmark = open_benchmark(str(published))
    assert pq.ParquetFile(published / mmdocir.PAGES).num_row_groups == 1
    assert batches == []
    pages = iter_pages(benchmark, "ocr_text")
    assert next(pages).number == 1
    assert batches == [2]
    assert len(list(pages)) == 4
    assert batches == [2, 2, 1]


def test_images_are_read_in_the_calling_thread(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of Arrow that holds a Python file when the interpreter exits can abort the process."""
    readers: set[int] = set()

    class Watched(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.get_ident())
            return super().read(-1 if size is None else size)

        def readinto(self, buffer: Any) -> int:
            readers.add(threading.get_ident())
            return super().readinto(buffer)

    class Hub:
        def open(self, source: str, mode: str) -> Watched:
            return Watched(published / source.rsplit("/", 1)[-1], mode)

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    source = f"hf://datasets/owner/set/{mmdocir.PAGES}"
    assert list(hub_dataset.images(source)) == [jpeg(10 * i) for i in range(5)]
    assert readers == {threading.get_ident()}


def test_row_groups_do_not_change_the_pages(published: Path) -> None:
    before = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
    pq.write_table(pages_table(), published / mmdocir.PAGES, row_group_size=1)
    assert list(iter_pages(open_benchmark(str(published)), "ocr_text")) == before
    assert len(before) == 5


def test_the_image_type_of_datasets_gives_bytes(published: Path) -> None:
    table = pages_table()
    images = [{"bytes": image, "path": None} for image in table["image_binary"].to_pylist()]
    typed = datasets.Dataset.from_dict(
        {**table.drop_columns("image_binary").to_pydict(), "image_binary": images}
    ).cast_column("image_binary", datasets.Image())
    typed.to_parquet(published / mmdocir.PAGES)
    pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
    assert [page.image for page in pages] == [jpeg(10 * i) for i in range(5)]
    assert [page.text for page in pages] == [f"ocr {i}" for i in range(5)]


@pytest.mark.slow
def test_abandoned_streams_do_not_abort_the_process(published: Path) -> None:
    """Both readers hold an open file when the interpreter exits (apache/arrow#45214)."""
    code = (
        "import sys\n"
        "from mmrr.evaluation import hub_dataset\n"
        "streams = hub_dataset.stream(sys.argv[1], ('doc_name',)), hub_dataset.images(sys.argv[1])\n"
        "print(*(type(next(one)).__name__ for one in streams))\n"
    )
    source = str(published / mmdocir.PAGES)
    done = subprocess.run([sys.executable, "-c", code, source], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "dict bytes\n"), done.stderr


def test_reading_leaves_no_file(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` writes lock files: they go to a temporary folder, which is deleted."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert len(list(hub_dataset.stream(str(published / mmdocir.PAGES), ("doc_name",)))) == 5
    assert list(scratch.iterdir()) == []


def test_a_missing_column(published: Path) -> None:
    pq.write_table(pages_table().drop_columns(["vlm_text"]), published / mmdocir.PAGES)
    benchmark = open_benchmark(str(published))
    with pytest.raises(MmrrError, match=r"MMDocIR_pages\.parquet: found no column vlm_text"):
        next(iter_pages(benchmark, "vlm_text"))
    pq.write_table(pages_table().drop_columns(["image_binary"]), published / mmdocir.PAGES)
    with pytest.raises(MmrrError, match=r"MMDocIR_pages\.parquet: found no column image_binary"):
        next(iter_pages(benchmark, "ocr_text"))
    pq.write_table(pages_table().drop_columns(["passage_id"]), published / mmdocir.PAGES)
    with pytest.raises(MmrrError, match="found no column passage_id"):
        open_benchmark(str(published))


def test_a_page_without_image(published: Path) -> None:
    table = pages_table()
    images = pa.array([*table["image_binary"].to_pylist()[:3], None, b""], pa.binary())
    table = table.set_column(table.schema.get_field_index("image_binary"), "image_binary", images)
    pq.write_table(table, published / mmdocir.PAGES)
    pages = iter_pages(open_benchmark(str(published)), "ocr_text")
    assert [next(pages).number for _ in range(3)] == [1, 2, 1]
    with pytest.raises(MmrrError, match=r"found no image for page 2 of b_report\.pdf"):
        next(pages)


def test_a_file_that_is_not_parquet(published: Path) -> None:
    benchmark = open_benchmark(str(published))
    (published / mmdocir.PAGES).write_bytes(b"PAR1 but not really")
    with pytest.raises(MmrrError, match=r"cannot read MMDocIR_pages\.parquet: "):
        open_benchmark(str(published))
    with pytest.raises(MmrrError, match=r"cannot read MMDocIR_pages\.parquet: "):
        next(iter_pages(benchmark, "ocr_text"))


@pytest.mark.slow
def test_offline_only_the_cache_is_used(published: Path, tmp_path: Path) -> None:
    """In a new process, because the Hub's settings are read only once."""
    snapshot = tmp_path / "hub" / "datasets--owner--set" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    for name in (mmdocir.PAGES, mmdocir.ANNOTATIONS[0]):
        (snapshot / name).write_bytes((published / name).read_bytes())
    code = (
        "import sys\n"
        "from mmrr.evaluation import mmdocir\n"
        "from mmrr.errors import MmrrError\n"
        "benchmark = mmdocir.open_benchmark('owner/set')\n"
        "print(benchmark.form, len(list(mmdocir.iter_pages(benchmark, 'ocr_text'))))\n"
        "for attempt in (lambda: list(mmdocir.iter_layouts(benchmark, 'ocr_text')),\n"
        "                lambda: mmdocir.open_benchmark('owner/other')):\n"
        "    try:\n"
        "        attempt()\n"
        "    except MmrrError as error:\n"
        "        print(error)\n"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    root = Path(mmdocir.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "published 5"
    assert lines[1].startswith("found no MMDocIR_layouts.parquet of owner/set in the cache, and HF_HUB_OFFLINE")
    assert lines[2].startswith("found no folder owner/other, and cannot get MMDocIR_annotations.jsonl")
