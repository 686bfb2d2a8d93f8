"""Source documents are read strictly; reports keep the links between questions and blocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.training.synthetic.reports import make_report
from mmrr.training.synthetic.sources import Block, Document, Question, read_documents, split
from tests.texts import RECORDS, write_texts

# Documents


def test_plain_and_gzipped_files_are_read(tmp_path: Path) -> None:
    plain = read_documents(write_texts(tmp_path / "texts.jsonl"))
    gzipped = tmp_path / "texts.jsonl.gz"
    gzipped.write_bytes(gzip.compress((tmp_path / "texts.jsonl").read_bytes()))
    assert read_documents(gzipped) == plain
    assert len(plain) == len(RECORDS)
    first = plain[0]
    assert [block.kind for block in first.blocks] == [block["type"] for block in RECORDS[0]["blocks"]]
    question = RECORDS[0]["questions"][0]
    assert first.questions[0] == Question(question["q"], question["a"], question["block"])
    assert first.questions[2].block is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no JSON", "Expecting value"),
        ("[]", "found list, expected an object"),
        ('{"id": "a"}', "no field 'blocks'"),
        ('{"id": "a", "blocks": [{"type": "poem", "text": "x"}]}', "block type 'poem', expected one of text, heading"),
        ('{"id": "a", "blocks": [], "questions": [{"a": "no q"}]}', "no field 'q'"),
        ('{"id": "a", "blocks": [], "questions": [{"q": null}]}', "q is None, expected a text"),
        ('{"id": "a", "blocks": [], "questions": [{"q": "x", "block": "1"}]}', "block is '1', expected an integer"),
        ('{"id": "a", "blocks": [], "questions": [{"q": "x", "block": true}]}', "block is True, expected an integer"),
        ('{"id": "a", "blocks": [], "title": 7}', "title is 7, expected a text or null"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(MmrrError, match="line 2: not a document") as raised:
        read_documents(path)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="cannot be read"):
        read_documents(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(MmrrError, match="has no documents"):
        read_documents(tmp_path / "empty.jsonl")


def test_nulls_are_empty_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    record = {"id": "a", "title": None, "blocks": [], "questions": [{"q": "x", "a": None, "block": None}]}
    path.write_text("\n" + json.dumps(record) + "\n  \n", encoding="utf-8")
    assert read_documents(path) == [Document("a", "", "", (), (Question("x", "", None),))]


def test_a_duplicate_id_is_refused(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", [RECORDS[0], RECORDS[1], RECORDS[0]])
    with pytest.raises(MmrrError, match="line 3: id 'made-up-0' is also on line 1; expected unique ids"):
        read_documents(path)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    compressed = gzip.compress(write_texts(tmp_path / "texts.jsonl").read_bytes())
    (tmp_path / "short.jsonl.gz").write_bytes(compressed[: len(compressed) // 2])
    with pytest.raises(MmrrError, match=r"short\.jsonl\.gz cannot be read"):
        read_documents(tmp_path / "short.jsonl.gz")


def test_a_split_holds_out_the_same_share_of_every_source() -> None:
    documents = [Document(f"{source}{n}", source, "", (), ()) for source in ("a", "b") for n in range(10)]
    train, test = split(documents, 0.2)
    assert {document.id for document in train} | {document.id for document in test} == {d.id for d in documents}
    assert sorted(document.source for document in test) == ["a", "a", "b", "b"]
    assert split(documents[::-1], 0.2) == (train, test)


# Reports


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return read_documents(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl"))


def is_scrambled(report: Document, documents: list[Document]) -> bool:
    known = {block.text for document in documents for block in document.blocks} | {d.title for d in documents}
    return any(block.text not in known for block in report.blocks)


def test_questions_keep_their_blocks_in_a_report(documents: list[Document]) -> None:
    reports = [make_report(documents, number, 0) for number in range(8)]
    questions = [(report, question) for report in reports for question in report.questions]
    assert len(questions) > 20
    for report, question in questions:
        if question.block is not None:
            block = report.blocks[question.block]
            assert question.answer in " ".join([block.text, *(cell for row in block.rows for cell in row)])


def test_a_scrambled_report_has_no_questions(documents: list[Document]) -> None:
    reports = [make_report(documents, number, 0) for number in range(20)]
    scrambled = [report for report in reports if is_scrambled(report, documents)]
    assert 0 < len(scrambled) < 15
    assert not any(report.questions for report in scrambled)
    assert all(report.questions for report in reports if report not in scrambled)


def test_documents_without_text_are_left_out_of_reports() -> None:
    full = Document("full", "made-up", "A title", (Block("text", "The harbour office keeps a list. " * 40),), ())
    empty = [Document(f"e{n}", "hollow", "", blocks, ()) for n, blocks in enumerate([(), (Block("text", " \n"),)])]
    for number in range(4):
        assert make_report([*empty, full], number, 0).source == "made-up"
    with pytest.raises(MmrrError, match="no document has text"):
        make_report(empty, 0, 0)
