"""Reading MMDocIR in both its forms: small copies of the published format, and the real data where it is at hand."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.evaluation import hub_dataset, mmdocir
from mmrr.evaluation.mmdocir import Benchmark, Box, iter_layouts, iter_pages, open_benchmark
from mmrr.types import Query


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 10), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def asked(text: str, pages: list[int], *boxes: tuple[int, list[Any]]) -> dict[str, Any]:
    mapping = [{"page": page, "page_size": [612.0, 792.0], "bbox": bbox} for page, bbox in boxes]
    return {"Q": text, "A": "-", "type": "['Table']", "page_id": pages, "layout_mapping": mapping}


ANNOTATIONS: list[dict[str, Any]] = [
    {
        "doc_name": "b report.pdf",
        "domain": "Financial report",
        "page_indices": [2, 4],
        "layout_indices": [1, 3],
        "questions": [
            asked("<|im_end|> how much?", [0, 2], (0, [1, 2.5, 3, 4]), (2, [0, 0, 612, 792])),
            asked("which?", []),
        ],
    },
    {"doc_name": "a.pdf", "domain": "News", "page_indices": [0, 1], "layout_indices": [0, 0], "questions": []},
]
#: doc_name and passage_id of the rows of the pages' file
ROWS = [("a.pdf", "0"), ("a.pdf", "1"), ("b report.pdf", "0"), ("b report.pdf", "1"), ("b report.pdf", "2")]
#: doc_name, page_id, type
LAYOUTS = [
    ("a.pdf", 1, "text"),
    ("b report.pdf", 0, "table"),
    ("b report.pdf", 2, "text"),
    ("b report.pdf", 2, "image"),
]


def write_annotations(folder: Path, lines: list[Any] = ANNOTATIONS, name: str = "MMDocIR_annotations.jsonl") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def pages_table(rows: list[tuple[str, str]] = ROWS) -> pa.Table:
    return pa.table(
        {
            "doc_name": [name for name, _ in rows],
            "domain": ["News"] * len(rows),
            "passage_id": [passage for _, passage in rows],
            "image_path": [f"page_images/{name}_{passage}.jpg" for name, passage in rows],
            "image_binary": pa.array([jpeg(10 * i) for i in range(len(rows))], pa.binary()),
            "ocr_text": [f"ocr {i}" for i in range(len(rows))],
            "vlm_text": [None if i == 1 else f"vlm {i}" for i in range(len(rows))],
        }
    )


def layouts_table(layouts: list[tuple[str, int, str]] = LAYOUTS) -> pa.Table:
    n = len(layouts)
    pictures = [kind in ("table", "image") for _, _, kind in layouts]
    return pa.table(
        {
            "doc_name": [name for name, _, _ in layouts],
            "domain": ["News"] * n,
            "type": [kind for _, _, kind in layouts],
            "layout_id": list(range(n)),
            "page_id": [page for _, page, _ in layouts],
            "image_path": ["x"] * n,
            "image_binary": pa.array([jpeg(i) for i in range(n)], pa.binary()),
            "text": [f"own {i}" for i in range(n)],
            "ocr_text": [f"ocr {i}" if picture else None for i, picture in enumerate(pictures)],
            "vlm_text": [f"vlm {i}" if picture else None for i, picture in enumerate(pictures)],
            "bbox": [[float(i), 0.0, 10.0, 20.0] for i in range(n)],
            "page_size": [[612.0, 792.0]] * n,
        }
    )


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "pub[1] *"  # patterns in a path must not be expanded
    write_annotations(folder)
    pq.write_table(pages_table(), folder / mmdocir.PAGES)
    pq.write_table(layouts_table(), folder / mmdocir.LAYOUTS)
    return folder


@pytest.fixture
def pdfs(tmp_path: Path) -> Path:
    folder = tmp_path / "pdfs"
    write_annotations(folder, name="annotations.jsonl")
    (folder / "documents").mkdir()
    (folder / "documents" / "a.pdf").write_bytes(b"%PDF-1.4")
    (folder / "b report.PDF").write_bytes(b"%PDF-1.4")
    return folder


def check_questions(benchmark: Benchmark) -> None:
    assert [document.doc_id for document in benchmark.documents] == ["b_report.pdf", "a.pdf"]
    assert [document.name for document in benchmark.documents] == ["b report.pdf", "a.pdf"]
    assert [document.n_pages for document in benchmark.documents] == [3, 2]
    first, second = benchmark.questions
    assert (first.query_id, first.doc_id, first.index) == ("b_report.pdf#0", "b_report.pdf", 0)
    assert (first.text, first.domain, first.page_id) == ("<|im_end|> how much?", "Financial report", (0, 2))
    assert first.pages == {"b_report.pdf/0001", "b_report.pdf/0003"}
    assert first.boxes == (
        Box(0, (1.0, 2.5, 3.0, 4.0), (612.0, 792.0)),
        Box(2, (0.0, 0.0, 612.0, 792.0), (612.0, 792.0)),
    )
    assert (second.query_id, second.index, second.pages, second.boxes) == ("b_report.pdf#1", 1, frozenset(), ())
    assert benchmark.queries()[1] == Query("b_report.pdf#1", "which?", "b_report.pdf")
    assert benchmark.qrels() == {"b_report.pdf#0": {"b_report.pdf/0001": 1, "b_report.pdf/0003": 1}}


class TestPublished:
    def test_questions_pages_and_layouts(self, published: Path) -> None:
        benchmark = open_benchmark(str(published))
        assert benchmark.form == "published"
        check_questions(benchmark)
        assert {document.pdf for document in benchmark.documents} == {None}

        pages = list(iter_pages(benchmark, "vlm_text"))
        expected = ["a.pdf/0001", "a.pdf/0002", "b_report.pdf/0001", "b_report.pdf/0002", "b_report.pdf/0003"]
        assert [page.page_id for page in pages] == expected
        assert [page.image for page in pages] == [jpeg(10 * i) for i in range(5)]
        assert [page.text for page in pages] == ["vlm 0", "", "vlm 2", "vlm 3", "vlm 4"]
        assert [page.text for page in iter_pages(benchmark, "ocr_text")] == [f"ocr {i}" for i in range(5)]

        layouts = list(iter_layouts(benchmark, "ocr_text"))
        ids = ["a.pdf/L00000", "b_report.pdf/L00000", "b_report.pdf/L00001", "b_report.pdf/L00002"]
        assert [layout.layout_id for layout in layouts] == ids
        assert [layout.page for layout in layouts] == [1, 0, 2, 2]
        assert [layout.text for layout in layouts] == ["own 0", "ocr 1", "own 2", "ocr 3"]
        assert [layout.image for layout in layouts] == [jpeg(i) for i in range(4)]
        assert layouts[2].bbox == (2.0, 0.0, 10.0, 20.0)
        assert layouts[2].page_size == (612.0, 792.0)
        geometry = list(iter_layouts(benchmark, "vlm_text", images=False))
        assert {layout.image for layout in geometry} == {None}
        assert [layout.text for layout in geometry] == ["own 0", "vlm 1", "own 2", "vlm 3"]
        assert [layout.bbox for layout in geometry] == [layout.bbox for layout in layouts]

    def test_pages_come_one_at_a_time(self, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file is one row group, as pandas writes it: the reader must not take in all of it for one page."""
        taken: list[int] = []
        iter_batches = pq.ParquetFile.iter_batches

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            for batch in iter_batches(self, *args, **kwargs):
                if batch.schema.names == ["image_binary"]:
                    taken.append(batch.num_rows)
                yield batch

        monkeypatch.setattr(hub_dataset, "_BATCH_IMAGES", 2)
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
        benchmark = open_benchmark(str(published))
        assert pq.ParquetFile(published / mmdocir.PAGES).num_row_groups == 1
        assert taken == []
        pages = iter_pages(benchmark, "ocr_text")
        assert next(pages).number == 1
        assert taken == [2]
        assert len(list(pages)) == 4
        assert taken == [2, 2, 1]

    def test_the_thread_that_asks_is_the_thread_that_reads(
        self, published: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Images: a thread of Arrow that holds a Python file at the exit of the interpreter aborts the process."""
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

    def test_many_row_groups_are_the_same_pages(self, published: Path) -> None:
        before = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        pq.write_table(pages_table(), published / mmdocir.PAGES, row_group_size=1)
        assert list(iter_pages(open_benchmark(str(published)), "ocr_text")) == before
        assert len(before) == 5

    def test_images_typed_by_the_hub_stay_bytes(self, published: Path) -> None:
        import datasets  # type: ignore[import-untyped]

        table = pages_table()
        images = [{"bytes": image, "path": None} for image in table["image_binary"].to_pylist()]
        typed = datasets.Dataset.from_dict(
            {**table.drop_columns("image_binary").to_pydict(), "image_binary": images}
        ).cast_column("image_binary", datasets.Image())
        typed.to_parquet(published / mmdocir.PAGES)
        pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        assert [page.image for page in pages] == [jpeg(10 * i) for i in range(5)]
        assert [page.text for page in pages] == [f"ocr {i}" for i in range(5)]

    def test_names_match_without_the_suffix(self, published: Path) -> None:
        rows = [(name.removesuffix(".pdf"), passage) for name, passage in ROWS]
        pq.write_table(pages_table(rows), published / mmdocir.PAGES)
        pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        assert [page.page_id for page in pages][2:4] == ["b_report.pdf/0001", "b_report.pdf/0002"]

    def test_documents_not_annotated_are_left_out(self, published: Path) -> None:
        pq.write_table(pages_table([("z.pdf", "0"), *ROWS, ("y.pdf", "0")]), published / mmdocir.PAGES)
        pq.write_table(layouts_table([("z.pdf", 0, "text"), *LAYOUTS]), published / mmdocir.LAYOUTS)
        benchmark = open_benchmark(str(published))
        pages = list(iter_pages(benchmark, "ocr_text"))
        assert [page.text for page in pages] == ["ocr 1", "ocr 2", "ocr 3", "ocr 4", "ocr 5"]
        assert [page.image for page in pages] == [jpeg(10 * i) for i in range(1, 6)]
        layouts = list(iter_layouts(benchmark, "ocr_text"))
        assert [layout.layout_id for layout in layouts][:2] == ["a.pdf/L00000", "b_report.pdf/L00000"]
        assert layouts[0].bbox[0] == 1.0

    def test_part_of_a_document_is_numbered_by_its_passage_ids(self, published: Path) -> None:
        pq.write_table(pages_table([ROWS[1], ROWS[4], ROWS[2]]), published / mmdocir.PAGES)
        pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        assert [page.page_id for page in pages] == ["a.pdf/0002", "b_report.pdf/0003", "b_report.pdf/0001"]

    @pytest.mark.parametrize("passages", [["1", "2", "3"], ["x_0", "x_1", "x_2"], ["7", "7", "7"]])
    def test_whole_documents_are_numbered_by_their_rows_where_passage_ids_do_not_count(
        self, published: Path, passages: list[str]
    ) -> None:
        rows = [*ROWS[:2], *(("b report.pdf", passage) for passage in passages)]
        pq.write_table(pages_table(rows), published / mmdocir.PAGES)
        pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        assert [page.number for page in pages] == [1, 2, 1, 2, 3]

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([*ROWS, ("a.pdf", "2")], "found 3 rows of a.pdf, expected 2 by its page_indices"),
            ([*ROWS[:3], ("b report.pdf", "b")], "found 2 of the 3 rows of b report.pdf, and passage_ids"),
            ([*ROWS[:3], ("b report.pdf", "3")], "do not number its pages from 0 to 2"),
            (ROWS[:2], "1 of the annotated documents have no row in MMDocIR_pages.parquet: b report.pdf"),
        ],
    )
    def test_rows_that_disagree_with_the_annotations(
        self, published: Path, rows: list[tuple[str, str]], message: str
    ) -> None:
        pq.write_table(pages_table(rows), published / mmdocir.PAGES)
        with pytest.raises(MmrrError, match=message):
            open_benchmark(str(published))

    def test_a_missing_column(self, published: Path) -> None:
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

    def test_a_page_without_image(self, published: Path) -> None:
        table = pages_table()
        images = pa.array([*table["image_binary"].to_pylist()[:3], None, b""], pa.binary())
        table = table.set_column(table.schema.get_field_index("image_binary"), "image_binary", images)
        pq.write_table(table, published / mmdocir.PAGES)
        pages = iter_pages(open_benchmark(str(published)), "ocr_text")
        assert [next(pages).number for _ in range(3)] == [1, 2, 1]
        with pytest.raises(MmrrError, match=r"found no image for page 2 of b_report\.pdf"):
            next(pages)

    def test_a_file_that_is_not_parquet(self, published: Path) -> None:
        benchmark = open_benchmark(str(published))
        (published / mmdocir.PAGES).write_bytes(b"PAR1 but not really")
        with pytest.raises(MmrrError, match=r"cannot read MMDocIR_pages\.parquet: "):
            open_benchmark(str(published))
        with pytest.raises(MmrrError, match=r"cannot read MMDocIR_pages\.parquet: "):
            next(iter_pages(benchmark, "ocr_text"))

    def test_layouts_are_needed_only_when_read(self, published: Path) -> None:
        (published / mmdocir.LAYOUTS).unlink()
        benchmark = open_benchmark(str(published))
        assert len(list(iter_pages(benchmark, "ocr_text"))) == 5
        with pytest.raises(MmrrError, match=r"found no MMDocIR_layouts\.parquet in .*, expected it in the folder"):
            next(iter_layouts(benchmark, "ocr_text"))

    def test_a_layout_without_box(self, published: Path) -> None:
        table = layouts_table()
        bboxes = pa.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0], None, None], pa.list_(pa.float64()))
        table = table.set_column(table.schema.get_field_index("bbox"), "bbox", bboxes)
        pq.write_table(table, published / mmdocir.LAYOUTS)
        with pytest.raises(MmrrError, match=r"MMDocIR_layouts\.parquet, row 1: bbox: found \[0\.0, 1\.0\], expected a"):
            list(iter_layouts(open_benchmark(str(published)), "ocr_text"))


class TestPdfs:
    def test_questions_and_files(self, pdfs: Path) -> None:
        benchmark = open_benchmark(str(pdfs))
        assert benchmark.form == "pdfs"
        check_questions(benchmark)
        found = [document.pdf for document in benchmark.documents]
        assert found == [pdfs / "b report.PDF", pdfs / "documents" / "a.pdf"]

    def test_missing_pdfs_are_listed(self, pdfs: Path) -> None:
        more = [{**ANNOTATIONS[1], "doc_name": f"n{i}.pdf"} for i in range(7)]
        write_annotations(pdfs, [*more, *ANNOTATIONS], "annotations.jsonl")
        with pytest.raises(MmrrError) as error:
            open_benchmark(str(pdfs))
        assert "7 of the annotated documents have no PDF in" in str(error.value)
        assert "n0.pdf, n1.pdf, n2.pdf, n3.pdf, n4.pdf, ...;" in str(error.value)
        assert "n5.pdf" not in str(error.value)

    def test_a_name_cannot_lead_out_of_the_folder(self, pdfs: Path) -> None:
        write_annotations(pdfs, [{**ANNOTATIONS[1], "doc_name": "documents/a.pdf"}], "annotations.jsonl")
        with pytest.raises(MmrrError, match="1 of the annotated documents have no PDF"):
            open_benchmark(str(pdfs))

    def test_annotations_need_no_row_numbers(self, pdfs: Path) -> None:
        line = {key: value for key, value in ANNOTATIONS[1].items() if not key.endswith("_indices")}
        write_annotations(pdfs, [line], "annotations.jsonl")
        assert open_benchmark(str(pdfs)).documents[0].n_pages is None

    def test_pages_of_pdfs_are_not_read_here(self, pdfs: Path) -> None:
        with pytest.raises(ValueError, match="iter_pages reads the published form"):
            next(iter_pages(open_benchmark(str(pdfs)), "ocr_text"))


class TestAnnotations:
    @pytest.mark.parametrize(
        ("name", "doc_id"),
        [
            ("a \t\n b.pdf", "a_b.pdf"),
            ("a\x00\x1f\u2003c.pdf", "a_c.pdf"),
            ("../up/x.pdf", ".._up_x.pdf"),
            ("e\u0301.pdf", "\u00e9.pdf"),
            ("Report (v2)#1, final.pdf".replace(" ", "-"), "Report-(v2)#1,-final.pdf"),
        ],
    )
    def test_document_ids_hold_no_spaces(self, tmp_path: Path, name: str, doc_id: str) -> None:
        write_annotations(tmp_path, [{**ANNOTATIONS[0], "doc_name": name, "page_indices": [0, 0]}])
        pq.write_table(pages_table([(name, "0")]), tmp_path / mmdocir.PAGES)
        benchmark = open_benchmark(str(tmp_path))
        assert [document.doc_id for document in benchmark.documents] == [doc_id]
        assert [page.page_id for page in iter_pages(benchmark, "ocr_text")] == [f"{doc_id}/0001"]
        assert not any(char.isspace() for question in benchmark.questions for char in question.query_id)

    def test_ids_stay_when_documents_are_added(self, pdfs: Path) -> None:
        alone = {question.text: question.query_id for question in open_benchmark(str(pdfs)).questions}
        new = {**ANNOTATIONS[1], "doc_name": "0.pdf", "questions": [asked("new", [0])]}
        (pdfs / "0.pdf").write_bytes(b"%PDF")
        write_annotations(pdfs, [new, *reversed(ANNOTATIONS)], "annotations.jsonl")
        together = {question.text: question.query_id for question in open_benchmark(str(pdfs)).questions}
        assert together == {**alone, "new": "0.pdf#0"}
        assert len(alone) == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"doc_name": None}, "doc_name: found None, expected text"),
            ({"doc_name": ".."}, "found the doc_name '..'"),
            ({"doc_name": "b_report.pdf"}, "found the document 'b_report.pdf' (as b_report.pdf) again"),
            ({"domain": 3}, "domain: found 3, expected text"),
            ({"page_indices": [3]}, "page_indices: found [3], expected a list of 2"),
            ({"page_indices": [3, 1]}, "found the page_indices [3, 1], expected [first row, last row]"),
            ({"questions": {}}, "questions: found {}, expected a list"),
            ({"questions": ["x"]}, "question 0: found something other than an object, expected an object with"),
            ({"questions": [asked(" ", [0])]}, "question 0: Q: found ' ', expected text"),
            ({"questions": [asked("x", [0]), asked("x", [-1])]}, "question 1: page_id: found -1, expected a whole"),
            ({"questions": [asked("x", [True])]}, "page_id: found True, expected a whole number from 0"),
            ({"questions": [asked("x", [0], (0, [1, 2, 3]))]}, "bbox: found [1, 2, 3], expected a list of 4"),
            ({"questions": [asked("x", [0], (0, [1, 2, 3, "4"]))]}, "bbox: found '4', expected numbers"),
            ({"questions": [{"Q": "x"}]}, "question 0: found no layout_mapping, expected the keys as published"),
        ],
    )
    def test_a_bad_line_is_named(self, pdfs: Path, change: dict[str, Any], message: str) -> None:
        write_annotations(pdfs, [ANNOTATIONS[0], {**ANNOTATIONS[1], **change}], "annotations.jsonl")
        with pytest.raises(MmrrError) as error:
            open_benchmark(str(pdfs))
        assert str(error.value).startswith("annotations.jsonl, line 2")
        assert message in str(error.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'\n{"doc_name": \n', "annotations.jsonl, line 2: found no valid JSON"),
            (b"[]", "line 1: found something other than an object, expected an object with doc_name"),
            (b"\n\xff\n", "annotations.jsonl, line 2: found no valid JSON ('utf-8' codec can't decode byte 0xff"),
            (b"\n \n", "annotations.jsonl is empty"),
        ],
    )
    def test_a_bad_file_is_named(self, pdfs: Path, content: bytes, message: str) -> None:
        (pdfs / "annotations.jsonl").write_bytes(content)
        with pytest.raises(MmrrError) as error:
            open_benchmark(str(pdfs))
        assert message in str(error.value)


class TestWhere:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(MmrrError, match=r"found no folder .*, expected a folder or a dataset id"):
            open_benchmark(str(tmp_path / "nothing"))

    def test_a_folder_without_annotations(self, tmp_path: Path) -> None:
        with pytest.raises(MmrrError, match=r"found no annotations in .*, expected MMDocIR_annotations\.jsonl or"):
            open_benchmark(str(tmp_path))

    def test_offline_the_cache_is_all_there_is(self, published: Path, tmp_path: Path) -> None:
        """In a process of its own, for the Hub's settings are read once."""
        snapshot = tmp_path / "hub" / "datasets--owner--set" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        refs = snapshot.parent.parent / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
        for name in (mmdocir.PAGES, mmdocir.ANNOTATIONS[0]):
            (snapshot / name).write_bytes((published / name).read_bytes())
        code = (
            "import sys\n"
            "from mmrr import mmdocir\n"
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
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "published 5"
        assert lines[1].startswith("found no MMDocIR_layouts.parquet of owner/set in the cache, and HF_HUB_OFFLINE")
        assert lines[2].startswith("found no folder owner/other, and cannot get MMDocIR_annotations.jsonl")


def test_the_real_data() -> None:
    """MMRR_TEST_MMDOCIR names a folder with the annotated PDFs of the development part."""
    data = os.environ.get("MMRR_TEST_MMDOCIR")
    if not data:
        pytest.skip("MMRR_TEST_MMDOCIR names no folder with MMDocIR's development part")
    benchmark = open_benchmark(data)
    assert benchmark.form == "pdfs"
    assert len(benchmark.documents) == 35
    assert len(benchmark.questions) == len({question.query_id for question in benchmark.questions}) == 210
    assert len({question.domain for question in benchmark.questions}) == 7
    assert sum(document.n_pages or 0 for document in benchmark.documents) == 1055
    assert sum(len(question.boxes) for question in benchmark.questions) == 414
    assert all(document.pdf is not None and document.pdf.is_file() for document in benchmark.documents)
    n_pages = {document.doc_id: document.n_pages for document in benchmark.documents}
    per_document = Counter(question.doc_id for question in benchmark.questions)
    assert per_document.keys() == n_pages.keys()
    for question in benchmark.questions:
        assert max(question.page_id) < (n_pages[question.doc_id] or 0)
        assert {box.page for box in question.boxes} == set(question.page_id)
