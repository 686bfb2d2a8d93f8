"""The page factory: seeded, true about where characters land, true about which page answers."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.training.synthetic import fonts, snippets, typesetting
from mmrr.training.synthetic import page_pool as pool_module
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.page_pool import Pool, fold
from mmrr.training.synthetic.reports import BoundQuestion, bind
from mmrr.training.synthetic.sources import Block, Document, Question, read_documents, split
from mmrr.training.synthetic.style import Look, Scan, choose
from mmrr.training.synthetic.typesetting import draw_document
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
        plain |= {"banners": False, "boxes": 0.0}

        def chosen(rng: random.Random, title: str) -> Look:
            return dataclasses.replace(choose(rng, title), **plain | values)

        monkeypatch.setattr(typesetting, "choose", chosen)

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
        '{"id": "a", "blocks": [], "questions": [{"q": null}]}',
        '{"id": "a", "blocks": [], "questions": [{"q": "x", "block": "1"}]}',
        '{"id": "a", "blocks": [], "questions": [{"q": "x", "block": true}]}',
        '{"id": "a", "blocks": [], "title": 7}',
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


def test_nulls_and_blank_lines_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    record = {"id": "a", "title": None, "blocks": [], "questions": [{"q": "x", "a": None, "block": None}]}
    path.write_text("\n" + json.dumps(record) + "\n  \n", encoding="utf-8")
    assert read_documents(path) == [Document("a", "", "", (), (Question("x", "", None),))]


def test_an_id_stands_once(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", [RECORDS[0], RECORDS[1], RECORDS[0]])
    with pytest.raises(MmrrError, match="line 3: id 'made-up-0' stands on line 1 already"):
        read_documents(path)


def test_a_packed_file_cut_short_is_one_line(tmp_path: Path) -> None:
    packed = gzip.compress(write_texts(tmp_path / "texts.jsonl").read_bytes())
    (tmp_path / "short.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(MmrrError, match=r"short\.jsonl\.gz cannot be read"):
        read_documents(tmp_path / "short.jsonl.gz")


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
            text = letters([block.text, *(cell for row in block.rows for cell in row)])
            in_capitals = block.kind == "heading" and look(DOCUMENT, seed).capitals
            assert letters(drawn) == (text.upper() if in_capitals else text), seed


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


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_no_word_of_a_table_is_cut_and_no_cell_is_lost(restyle: Restyle, columns: int) -> None:
    """Nine columns that no page holds beside one another are set in parts, one below the other."""
    restyle(scan=None, columns=columns)
    head = tuple(f"characterisation{n}" for n in range(9))
    rows = (head, *(tuple(f"responsibilities{n} of row{r}" for n in range(9)) for r in range(4)))
    for seed in range(4):
        pages = draw_document(Document("wide", "", "", (Block("table", rows=rows),), ()), seed)
        words = [word for page in pages for word in page.words if word.block == 0]
        assert sorted(word.text for word in words) == sorted(" ".join(map(" ".join, rows)).split()), seed
        assert all((word.centres > 0).all() for word in words)


def test_headings_and_paragraphs_stand_on_their_colour(restyle: Restyle) -> None:
    restyle(banners=True, boxes=1.0, accent=(200, 0, 0), scan=None, columns=1, capitals=True, supersample=1)
    blocks = (Block("heading", "Berths"), Block("text", TEXT))
    page = next(draw_document(Document("boxes", "", "", blocks, ()), 3))
    pixels = np.asarray(page.image).astype(int)
    assert page.text(0) == "BERTHS"
    for word in page.words:
        if word.block < 0:
            continue
        x, y = word.centres.mean(0).round().astype(int)
        around = pixels[y - 6 : y + 7, x - 6 : x + 7].reshape(-1, 3)
        reddish = (around[:, 0] - around[:, 1] > 15).mean()
        assert reddish > 0.3, word.text  # most of what is not ink is the band


@pytest.mark.parametrize("rows", [(), ((),), (("a", "b"), (), ("x", "1"), ("y", "2"), ("z", "3"))])
def test_a_table_without_cells_is_drawn_as_nothing(restyle: Restyle, rows: tuple[tuple[str, ...], ...]) -> None:
    restyle(figures=1.0, scan=None)  # a chart of every table
    document = Document("table", "", "", (Block("text", "Before."), Block("table", rows=rows)), ())
    drawn = [word.text for page in draw_document(document, 1) for word in page.words if word.block == 1]
    assert letters(drawn) == letters([cell for row in rows for cell in row])


def test_a_row_taller_than_a_page_is_cut_to_one(restyle: Restyle) -> None:
    restyle(scan=None)
    rows = (("Head", "Other"), ("huge " * 20_000, "short"), ("last", "row"))
    pages = list(draw_document(Document("table", "", "", (Block("table", rows=rows),), ()), 1))
    drawn = [word for page in pages for word in page.words if word.block == 0]
    texts = [word.text for word in drawn]
    assert 100 < texts.count("huge") < 20_000
    assert {"short", "last", "row"} <= set(texts)
    assert all((word.centres > 0).all() and (word.centres < pages[0].image.size).all() for word in drawn)


def test_a_blank_line_of_a_list_has_no_bullet(restyle: Restyle) -> None:
    restyle(header="", footer="", slide=False)
    (page,) = draw_document(Document("list", "", "", (Block("list", "one\n\n  \ntwo"),), ()), 1)
    assert [word.text for word in page.words] == ["•", "one", "•", "two"]


def test_what_a_face_lacks_is_drawn_in_another_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = fonts.Family("A", "a", "a", "a", False), fonts.Family("B", "b", "b", "b", False)
    has = {"a": "abc", "b": "abcxyz"}
    monkeypatch.setattr(fonts, "families", lambda: (first, second))
    monkeypatch.setattr(fonts, "_glyphs", lambda file: {c: c in has[file] for c in "abcxyz?"})
    fonts._other.cache_clear()
    try:
        assert [fonts.suited(word, "a") for word in ("abc", "ax?", "?")] == ["a", "b", "a"]
        assert fonts.written("ab? ? ax?", "a") == "ab ax"
    finally:
        fonts._other.cache_clear()


def test_nothing_is_recorded_that_no_face_draws(restyle: Restyle) -> None:
    restyle(header="", footer="")
    blocks = (Block("text", "so\u00adft \ue0c7 \u200b wo\ue0c7rd"), Block("text", "\ue0c7"))
    (page,) = draw_document(Document("gaps", "", "", blocks, ()), 1)
    assert "".join(page.text().split()).replace("\u00ad", "") == "softword"
    assert "\ue0c7" not in page.text()
    assert "\ue0c7" not in snippets.draw_snippet(["\ue0c7"], 64, 64, random.Random(1)).text()


def test_design_sizes_and_medium_faces_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = [
        "/f/g08.otf|EB Garamond,EB Garamond 08|08 Regular,Regular|",
        "/f/g12.otf|EB Garamond,EB Garamond 12|12 Regular,Regular|",
        "/f/g12i.otf|EB Garamond,EB Garamond 12|12 Italic,Italic|",
        "/f/i.otf|Inconsolata|Medium|100",
        "/f/lm10.otf|Latin Modern Roman,LM Roman 10|10 Regular,Regular|",
        "/f/lm10b.otf|Latin Modern Roman,LM Roman 10|10 Bold,Bold|",
        "/f/lm5.otf|Latin Modern Roman,LM Roman 5|5 Regular,Regular|",
        "/f/r-medium.ttf|Roboto|Medium|",
        "/f/r.ttf|Roboto|Regular|",
    ]
    monkeypatch.setattr(fonts, "_listing", lambda: listing)
    monkeypatch.setattr(fonts, "_writes_english", lambda file: True)
    assert fonts.families.__wrapped__() == (
        fonts.Family("EB Garamond", "/f/g12.otf", "/f/g12.otf", "/f/g12i.otf", False),
        fonts.Family("Inconsolata", "/f/i.otf", "/f/i.otf", "/f/i.otf", True),
        fonts.Family("Latin Modern Roman", "/f/lm10.otf", "/f/lm10b.otf", "/f/lm10.otf", False),
        fonts.Family("Roboto", "/f/r.ttf", "/f/r.ttf", "/f/r.ttf", False),
    )


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


def test_documents_without_text_are_bound_into_nothing() -> None:
    empty = [Document(f"e{n}", "hollow", "", blocks, ()) for n, blocks in enumerate([(), (Block("text", " \n"),)])]
    for number in range(4):
        assert bind([*empty, DOCUMENT], number, 0).source == DOCUMENT.source
    with pytest.raises(MmrrError, match="no document has text"):
        bind(empty, 0, 0)


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
    assert {path.name for path in tmp_path.iterdir()} == {"000000", "pool.json"}
    assert second.page(0, 0).image.tobytes() == before.image.tobytes()


def test_a_pool_is_of_what_it_was_made_from(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Pool(tmp_path / "pool", documents, 3, max_pages=1)
    Pool(tmp_path / "pool", list(documents), 3, max_pages=1)
    changed = [dataclasses.replace(documents[0], title="Another"), *documents[1:]]
    for others, seed, max_pages, what in (
        (changed, 3, 1, "another documents;"),
        (documents, 4, 1, "another seed;"),
        (documents, 3, 2, "another max_pages;"),
    ):
        with pytest.raises(MmrrError, match=what) as raised:
            Pool(tmp_path / "pool", others, seed, max_pages)
        assert "\n" not in str(raised.value)
    (tmp_path / "old" / "000000").mkdir(parents=True)
    with pytest.raises(MmrrError, match=r"no pool\.json"):
        Pool(tmp_path / "old", documents, 3)
    monkeypatch.setattr(pool_module, "families", lambda: (fonts.Family("Other", "o.ttf", "o.ttf", "o.ttf", False),))
    with pytest.raises(MmrrError, match="another fonts;"):
        Pool(tmp_path / "pool", documents, 3, max_pages=1)


def located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Document, max_pages: int) -> dict[str, list[int]]:
    """Question -> pages, of this report drawn as it is."""
    monkeypatch.setattr(pool_module, "bind", lambda *_: report)
    return {asked.text: list(asked.pages) for asked in Pool(tmp_path, [report], 0, max_pages).questions(0)}


def test_a_block_cut_off_answers_only_what_it_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "It starts with a quarrel. " + "Nothing of this says how the story ends. " * 900 + "It ends with a kiss."
    asked = [("start", "a quarrel"), ("end", "a kiss"), ("words", "7205"), ("unsaid", "")]
    questions = tuple(BoundQuestion(name, answer, 0, 0, 0) for name, answer in asked)
    report = Document("story", "", "", (Block("text", text),), questions)
    assert located(tmp_path / "cut", monkeypatch, report, 2) == {"start": [0]}
    whole = located(tmp_path / "whole", monkeypatch, report, 200)
    last = whole["words"][-1]
    assert last > 2
    assert whole == {"start": [0], "end": [last], "words": [*range(last + 1)], "unsaid": [*range(last + 1)]}


@pytest.mark.slow
def test_answers_are_found_as_whole_words_of_their_own_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restyle: Restyle
) -> None:
    restyle(header="", footer="")
    filler = "Nothing to see. " * 1500
    texts = ["Seat 107, by the door.", filler, "It was seat 7!", "A heronry.", filler, "The HERON."]
    blocks = tuple(Block("text", text) for text in texts)
    long = Document("x", "", "", (Block("text", " ".join(texts)),), (BoundQuestion("seat", "7", 0, 0, 0),))
    found = located(tmp_path / "long", monkeypatch, long, 200)["seat"]
    assert len(found) == 1
    assert found != [0]
    questions = (
        BoundQuestion("own", "heron", None, 3, 5),
        BoundQuestion("another's", "heron", None, 0, 2),
        BoundQuestion("part", "hero", None, 3, 5),
        BoundQuestion("twice", "nothing", None, 3, 5),
    )
    report = Document("x", "", "", blocks, questions)
    assert set(located(tmp_path / "report", monkeypatch, report, 200)) == {"own"}
    assert fold("(The 12.8 — “HERON”)") == " the 12.8 heron "


def test_a_failed_drawing_leaves_nothing(
    documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pool = Pool(tmp_path, documents, 3, max_pages=1)
    for place, name in ((os, "rename"), (pool_module, "draw_document")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(OSError, match="No space left"):
                pool.pages(0)
        assert [path.name for path in tmp_path.iterdir()] == ["pool.json"]
    monkeypatch.setattr(pool_module, "draw_document", lambda *_: ())
    with pytest.raises(MmrrError, match="report 0 has no page"):
        pool.pages(0)
    assert [path.name for path in tmp_path.iterdir()] == ["pool.json"]


def test_reports_are_as_readable_as_other_folders(documents: list[Document], tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", documents, 3, max_pages=1)
    pool.pages(0)
    (tmp_path / "other").mkdir()
    assert stat.S_IMODE((tmp_path / "pool" / "000000").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )
