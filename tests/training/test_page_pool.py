"""The page pool: reports from disk equal those that were drawn, and the known pages of a question answer it."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.training.synthetic import fonts
from mmrr.training.synthetic import page_pool as pool_module
from mmrr.training.synthetic.page_pool import PagePool, fold_words
from mmrr.training.synthetic.reports import ReportQuestion, make_report
from mmrr.training.synthetic.sources import Block, Document, read_documents
from mmrr.training.synthetic.typesetting import draw_document
from tests.texts import write_texts
from tests.training.drawing import fix_style


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return read_documents(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl"))


def test_pages_from_disk_equal_the_drawn_pages(documents: list[Document], tmp_path: Path) -> None:
    number = next(n for n in range(20) if make_report(documents, n, 3).questions)
    drawn = list(draw_document(make_report(documents, number, 3), 3 + number, 2))
    assert PagePool(tmp_path, documents, 3, max_pages=2).page_count(number) == len(drawn)
    pool = PagePool(tmp_path, documents, 3, max_pages=2)  # a second pool that reads the folder of the first
    for at, page in enumerate(drawn):
        again = pool.page(number, at)
        assert again.image.tobytes() == page.image.tobytes()
        assert [(word.text, word.block) for word in again.words] == [(word.text, word.block) for word in page.words]
        for old, new in zip(page.words, again.words, strict=True):
            assert np.abs(old.centres - new.centres).max() <= 0.051  # stored with one decimal
    questions = pool.questions(number)
    assert questions
    for question in questions:
        for at in question.pages:
            assert question.answer.lower() in drawn[at].text().lower()


def test_two_processes_may_draw_the_same_report(documents: list[Document], tmp_path: Path) -> None:
    first, second = (PagePool(tmp_path, documents, 3, max_pages=1) for _ in range(2))
    before = first.page(0, 0)
    second._draw(0)  # as if it had started before the first had finished
    assert {path.name for path in tmp_path.iterdir()} == {"000000", "pool.json"}
    assert second.page(0, 0).image.tobytes() == before.image.tobytes()


def test_a_pool_of_another_origin_is_refused(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PagePool(tmp_path / "pool", documents, 3, max_pages=1)
    PagePool(tmp_path / "pool", list(documents), 3, max_pages=1)
    changed = [dataclasses.replace(documents[0], title="Another"), *documents[1:]]
    for others, seed, max_pages, what in (
        (changed, 3, 1, "other documents;"),
        (documents, 4, 1, "other seed;"),
        (documents, 3, 2, "other max_pages;"),
    ):
        with pytest.raises(MmrrError, match=what) as raised:
            PagePool(tmp_path / "pool", others, seed, max_pages)
        assert "\n" not in str(raised.value)
    (tmp_path / "old" / "000000").mkdir(parents=True)
    with pytest.raises(MmrrError, match=r"no pool\.json"):
        PagePool(tmp_path / "old", documents, 3)
    monkeypatch.setattr(pool_module, "families", lambda: (fonts.Family("Other", "o.ttf", "o.ttf", "o.ttf", False),))
    with pytest.raises(MmrrError, match="other fonts;"):
        PagePool(tmp_path / "pool", documents, 3, max_pages=1)


def located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Document, max_pages: int) -> dict[str, list[int]]:
    """Question -> pages of a pool whose only report is ``report``."""
    monkeypatch.setattr(pool_module, "make_report", lambda *_: report)
    return {question.text: list(question.pages) for question in PagePool(tmp_path, [report], 0, max_pages).questions(0)}


def test_a_cut_block_answers_only_with_the_words_that_were_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "It starts with a quarrel. " + "Nothing of this says how the story ends. " * 900 + "It ends with a kiss."
    answers = [("start", "a quarrel"), ("end", "a kiss"), ("words", "7205"), ("unsaid", "")]
    questions = tuple(ReportQuestion(name, answer, 0, 0, 0) for name, answer in answers)
    report = Document("story", "", "", (Block("text", text),), questions)
    assert located(tmp_path / "cut", monkeypatch, report, 2) == {"start": [0]}
    whole = located(tmp_path / "whole", monkeypatch, report, 200)
    last = whole["words"][-1]
    assert last > 2
    assert whole == {"start": [0], "end": [last], "words": [*range(last + 1)], "unsaid": [*range(last + 1)]}


@pytest.mark.slow
def test_answers_are_whole_words_of_their_own_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix_style(monkeypatch, header="", footer="")
    filler = "Nothing to see. " * 1500
    texts = ["Seat 107, by the door.", filler, "It was seat 7!", "A heronry.", filler, "The HERON."]
    blocks = tuple(Block("text", text) for text in texts)
    long = Document("x", "", "", (Block("text", " ".join(texts)),), (ReportQuestion("seat", "7", 0, 0, 0),))
    found = located(tmp_path / "long", monkeypatch, long, 200)["seat"]
    assert len(found) == 1
    assert found != [0]
    questions = (
        ReportQuestion("own", "heron", None, 3, 5),
        ReportQuestion("another's", "heron", None, 0, 2),
        ReportQuestion("part", "hero", None, 3, 5),
        ReportQuestion("twice", "nothing", None, 3, 5),
    )
    report = Document("x", "", "", blocks, questions)
    assert set(located(tmp_path / "report", monkeypatch, report, 200)) == {"own"}
    assert fold_words("(The 12.8 — “HERON”)") == " the 12.8 heron "


def test_a_failed_drawing_leaves_no_files(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pool = PagePool(tmp_path, documents, 3, max_pages=1)
    for place, name in ((os, "rename"), (pool_module, "draw_document")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(OSError, match="No space left"):
                pool.page_count(0)
        assert [path.name for path in tmp_path.iterdir()] == ["pool.json"]
    monkeypatch.setattr(pool_module, "draw_document", lambda *_: ())
    with pytest.raises(MmrrError, match="report 0 has no page"):
        pool.page_count(0)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.json"]


def test_report_folders_have_the_usual_permissions(documents: list[Document], tmp_path: Path) -> None:
    pool = PagePool(tmp_path / "pool", documents, 3, max_pages=1)
    pool.page_count(0)
    (tmp_path / "other").mkdir()
    assert stat.S_IMODE((tmp_path / "pool" / "000000").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )
