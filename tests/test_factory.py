"""The page factory: seeded, true about where characters land, true about which page answers."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.factory import fonts, layout
from mmrr.factory.canvas import DrawnPage
from mmrr.factory.layout import draw_document
from mmrr.factory.looks import Look, Scan, choose
from mmrr.factory.pool import Pool
from mmrr.factory.reports import bind
from mmrr.factory.sources import Block, Document, Question, read_documents, split
from tests.texts import RECORDS, write_texts

TEXT = "The harbour office keeps a list of every boat that has asked for a berth in the last three winters. " * 6
CODE = "def berth(boat):\n    if boat.length > 12:\n        return None\n    return boat.number\n"
ROWS = (("Boat", "Length", "Berth"), *((f"Boat {n} of the fleet", f"{n}.5", f"B{n}") for n in range(1, 5)))
BLOCKS = (
    Block("heading", "Berths for the winter"),
    Block("text", TEXT),
    Block("list", "first come\nfirst served\nno boats on trailers"),
    Block("code", CODE),
    Block("table", rows=ROWS),
)
DOCUMENT = Document("harbour", "made-up", "The harbour book", BLOCKS * 2, ())

Restyle = Callable[..., None]


@pytest.fixture
def restyle(monkeypatch: pytest.MonkeyPatch) -> Restyle:
    """Black on white, no pictures, and whatever else a test names, in place of what the seed chose."""

    def change(**values: Any) -> None:
        plain = {"paper": (255, 255, 255), "ink": (0, 0, 0), "accent": (0, 0, 0), "zebra": False, "figures": 0.0}

        def chosen(rng: random.Random, title: str) -> Look:
            return dataclasses.replace(choose(rng, title), **plain | values)

        monkeypatch.setattr(layout, "choose", chosen)

    return change


def look(document: Document, seed: int) -> Look:
    return choose(random.Random(f"{seed}/{document.id}"), document.title)


def letters(words: list[str]) -> str:
    return "".join("".join(words).split())


# Documents


def test_documents_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    plain = read_documents(write_texts(tmp_path / "texts.jsonl"))
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "texts.jsonl").read_bytes()))
    assert read_documents(packed) == plain
    assert len(plain) == len(RECORDS)
    first = plain[0]
    assert [block.kind for block in first.blocks] == [block["type"] for block in RECORDS[0]["blocks"]]
    asked = RECORDS[0]["questions"]
    assert first.questions[0] == Question(asked[0]["q"], asked[0]["a"], asked[0]["block"])
    assert first.questions[2].block is None


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"id": "a"}',
        '{"id": "a", "blocks": [{"type": "poem", "text": "x"}]}',
        '{"id": "a", "blocks": [], "questions": [{"a": "no q"}]}',
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(MmrrError, match="line 2: not a document") as raised:
        read_documents(path)
    assert "\n" not in str(raised.value)


def test_no_file_and_no_documents_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="cannot be read"):
        read_documents(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(MmrrError, match="holds no documents"):
        read_documents(tmp_path / "empty.jsonl")


def test_a_split_shares_out_every_source() -> None:
    documents = [Document(f"{source}{n}", source, "", (), ()) for source in ("a", "b") for n in range(10)]
    train, test = split(documents, 0.2)
    assert {document.id for document in train} | {document.id for document in test} == {d.id for d in documents}
    assert sorted(document.source for document in test) == ["a", "a", "b", "b"]
    assert split(documents[::-1], 0.2) == (train, test)


# Pages


def test_one_seed_one_page_another_seed_another_look() -> None:
    def draw(seed: int) -> DrawnPage:
        return next(draw_document(DOCUMENT, seed))

    one, again, other = draw(1), draw(1), draw(2)
    assert one.image.tobytes() == again.image.tobytes()
    assert [(word.text, word.block) for word in one.words] == [(word.text, word.block) for word in again.words]
    assert all(np.array_equal(a.centres, b.centres) for a, b in zip(one.words, again.words, strict=True))
    assert look(DOCUMENT, 1) != look(DOCUMENT, 2)
    assert one.image.tobytes() != other.image.tobytes()


def test_everything_is_written_in_its_order() -> None:
    for seed in range(3):
        words = [word for page in draw_document(DOCUMENT, seed) for word in page.words if word.block >= 0]
        for index, block in enumerate(DOCUMENT.blocks):
            drawn = [word.text for word in words if word.block == index]
            assert letters(drawn) == letters([block.text, *(cell for row in block.rows for cell in row)]), seed


def test_characters_of_an_unscanned_page_lie_on_it() -> None:
    seeds = [seed for seed in range(40) if look(DOCUMENT, seed).scan is None][:4]
    for seed in seeds:
        for page in draw_document(DOCUMENT, seed, max_pages=2):
            assert page.image.size == (look(DOCUMENT, seed).width_px, look(DOCUMENT, seed).height_px)
            for word in page.words:
                if word.block >= 0:
                    assert word.centres.shape == (len(word.text), 2)
                    assert (word.centres > 0).all(), (seed, word)
                    assert (word.centres < page.image.size).all(), (seed, word)


@pytest.mark.parametrize("angle", [0.0, 1.5, -1.5])
def test_characters_lie_on_ink(restyle: Restyle, angle: float) -> None:
    restyle(scan=Scan(angle, blur_px=0.0, noise=3.0, contrast=0.9, jpeg=70), leading=2.0, columns=1)
    page = next(draw_document(DOCUMENT, 5))
    pixels = np.asarray(page.image.convert("L"))
    paper = float(np.median(pixels))

    def share(middle_of: Callable[[np.ndarray], np.ndarray]) -> float:
        """Of the letters, how many have something dark within 4 pixels of their middle."""
        found = []
        for word in page.words:
            for character, (x, y) in zip(word.text, middle_of(word.centres).round().astype(int), strict=True):
                if character.isalnum():
                    near = pixels[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
                    found.append(near.size > 0 and near.min() < paper - 60)
        assert len(found) > 200
        return sum(found) / len(found)

    assert share(lambda centres: centres) > 0.98
    # Lines are set so far apart that a page turned the wrong way, or half a line off, would be seen here.
    line_px = 2.0 * look(DOCUMENT, 5).body_px
    assert share(lambda centres: centres + np.array([0, line_px / 2])) < 0.5


def test_a_table_over_several_pages_repeats_and_loses_nothing() -> None:
    rows = (("Name", "Place", "Number"), *((f"Row {n}", f"shelf {n} by the east door", f"{n * 7}") for n in range(250)))
    table = Document("table", "made-up", "", (Block("table", rows=rows),), ())
    for seed in range(3):
        pages = list(draw_document(table, seed))
        assert len(pages) > 1
        drawn = [word.text for page in pages for word in page.words if word.block == 0]
        assert letters(drawn) == letters([cell for row in rows for cell in row])


def test_pages_are_drawn_where_no_fonts_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no fc-list
    fonts.families.cache_clear()
    try:
        assert [family.name for family in fonts.families()] == ["Pillow"]
        page = next(draw_document(DOCUMENT, 1))
        assert "harbour" in page.text()
        assert np.asarray(page.image).std() > 1
    finally:
        fonts.families.cache_clear()


# Reports


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return read_documents(write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl"))


def is_scrambled(report: Document, documents: list[Document]) -> bool:
    known = {block.text for document in documents for block in document.blocks} | {d.title for d in documents}
    return any(block.text not in known for block in report.blocks)


def test_questions_keep_pointing_at_their_blocks(documents: list[Document]) -> None:
    reports = [bind(documents, number, 0) for number in range(8)]
    asked = [(report, question) for report in reports for question in report.questions]
    assert len(asked) > 20
    for report, question in asked:
        if question.block is not None:
            block = report.blocks[question.block]
            assert question.answer in " ".join([block.text, *(cell for row in block.rows for cell in row)])


def test_a_scrambled_report_asks_nothing(documents: list[Document]) -> None:
    reports = [bind(documents, number, 0) for number in range(20)]
    scrambled = [report for report in reports if is_scrambled(report, documents)]
    assert 0 < len(scrambled) < 15
    assert not any(report.questions for report in scrambled)
    assert all(report.questions for report in reports if report not in scrambled)


# The pool


def test_a_pool_gives_from_disk_what_it_drew(documents: list[Document], tmp_path: Path) -> None:
    number = next(n for n in range(20) if bind(documents, n, 3).questions)
    drawn = list(draw_document(bind(documents, number, 3), 3 + number, 2))
    assert Pool(tmp_path, documents, 3, max_pages=2).pages(number) == len(drawn)
    pool = Pool(tmp_path, documents, 3, max_pages=2)  # another one: it has only the disk
    for at, page in enumerate(drawn):
        again = pool.page(number, at)
        assert again.image.tobytes() == page.image.tobytes()
        assert [(word.text, word.block) for word in again.words] == [(word.text, word.block) for word in page.words]
        for old, new in zip(page.words, again.words, strict=True):
            assert np.abs(old.centres - new.centres).max() <= 0.051  # kept to a tenth of a pixel
    asked = pool.questions(number)
    assert asked
    for question in asked:
        for at in question.pages:
            assert question.answer.lower() in drawn[at].text().lower()


def test_two_may_draw_one_report_at_once(documents: list[Document], tmp_path: Path) -> None:
    first, second = (Pool(tmp_path, documents, 3, max_pages=1) for _ in range(2))
    before = first.page(0, 0)
    second._draw(0)  # as if it had begun before the first was done
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]
    assert second.page(0, 0).image.tobytes() == before.image.tobytes()
