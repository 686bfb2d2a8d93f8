"""Reading MMDocIR in its published form: small copies of the format, and the real data if a variable names it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import iter_layouts, iter_pages, open_benchmark
from tests.evaluation.mmdocir_files import LAYOUTS, ROWS, check_questions, jpeg, layouts_table, pages_table


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

    def test_names_match_without_the_suffix(self, published: Path) -> None:
        rows = [(name.removesuffix(".pdf"), passage) for name, passage in ROWS]
        pq.write_table(pages_table(rows), published / mmdocir.PAGES)
        pages = list(iter_pages(open_benchmark(str(published)), "ocr_text"))
        assert [page.page_id for page in pages][2:4] == ["b_report.pdf/0001", "b_report.pdf/0002"]

    def test_documents_without_annotations_are_left_out(self, published: Path) -> None:
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
    def test_complete_documents_are_numbered_by_rows_if_passage_ids_do_not_count(
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
    def test_rows_that_contradict_the_annotations(
        self, published: Path, rows: list[tuple[str, str]], message: str
    ) -> None:
        pq.write_table(pages_table(rows), published / mmdocir.PAGES)
        with pytest.raises(MmrrError, match=message):
            open_benchmark(str(published))

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


def test_the_real_data() -> None:
    """The variable MMRR_TEST_MMDOCIR names a folder with the annotated PDFs of the development part."""
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
