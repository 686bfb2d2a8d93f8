"""Reading MMDocIR's annotations with the original PDFs: files, ids, and errors that name the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation import mmdocir
from mmrr.evaluation.mmdocir import iter_pages, open_benchmark
from tests.evaluation.mmdocir_files import ANNOTATIONS, check_questions, pages_table, question, write_annotations


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

    def test_a_name_cannot_leave_the_folder(self, pdfs: Path) -> None:
        write_annotations(pdfs, [{**ANNOTATIONS[1], "doc_name": "documents/a.pdf"}], "annotations.jsonl")
        with pytest.raises(MmrrError, match="1 of the annotated documents have no PDF"):
            open_benchmark(str(pdfs))

    def test_annotations_need_no_row_numbers(self, pdfs: Path) -> None:
        line = {key: value for key, value in ANNOTATIONS[1].items() if not key.endswith("_indices")}
        write_annotations(pdfs, [line], "annotations.jsonl")
        assert open_benchmark(str(pdfs)).documents[0].n_pages is None

    def test_iter_pages_refuses_the_pdf_form(self, pdfs: Path) -> None:
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
        assert not any(char.isspace() for one in benchmark.questions for char in one.query_id)

    def test_ids_stay_when_documents_are_added(self, pdfs: Path) -> None:
        alone = {one.text: one.query_id for one in open_benchmark(str(pdfs)).questions}
        new = {**ANNOTATIONS[1], "doc_name": "0.pdf", "questions": [question("new", [0])]}
        (pdfs / "0.pdf").write_bytes(b"%PDF")
        write_annotations(pdfs, [new, *reversed(ANNOTATIONS)], "annotations.jsonl")
        together = {one.text: one.query_id for one in open_benchmark(str(pdfs)).questions}
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
            ({"questions": [question(" ", [0])]}, "question 0: Q: found ' ', expected text"),
            (
                {"questions": [question("x", [0]), question("x", [-1])]},
                "question 1: page_id: found -1, expected a whole",
            ),
            ({"questions": [question("x", [True])]}, "page_id: found True, expected a whole number from 0"),
            ({"questions": [question("x", [0], (0, [1, 2, 3]))]}, "bbox: found [1, 2, 3], expected a list of 4"),
            ({"questions": [question("x", [0], (0, [1, 2, 3, "4"]))]}, "bbox: found '4', expected numbers"),
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
