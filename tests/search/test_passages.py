"""The passage of a page and the marked words of a query."""

from __future__ import annotations

import time

import pytest

from mmrr.search.passages import LENGTH, Marker


def marked(query: str, text: str, *languages: str) -> list[str]:
    passage = Marker(query, languages or ("en",)).passage(text)
    return [passage.text[start:end] for start, end in passage.marks]


@pytest.mark.parametrize(
    ("query", "text", "expected"),
    [
        ("When are dates due?", "The date: DUES are due.", ["date", "DUES", "due"]),
        ("the of a", "the cat of a house", []),
        ("state of the art", "a state-of-the-art engine", ["state-of-the-art"]),
        ("12,500", "a total of 12.500 tons", ["12.500"]),
        ("北海道", "私は北海道に住む", ["北海道"]),
        ("e-mail", "by e-mail; or mail", ["e-mail", "mail"]),
        ("<b>bold</b>", "a bold <b>move", ["bold", "b"]),
        ("", "text", []),
    ],
)
def test_marks(query: str, text: str, expected: list[str]):
    assert marked(query, text) == expected


def test_marks_follow_the_language_of_the_page():
    marker = Marker("Häuser", ("de", "en"))
    assert marker.places("ein Haus", "de") == [(4, 8)]
    assert marker.places("haeuser") == [(0, 7)]


def test_the_passage_with_the_most_words_of_the_query():
    filler = "lorem ipsum dolor " * 40
    text = f"The ferry. {filler}A ferry leaves the harbour at noon. {filler}"
    passage = Marker("ferry harbour noon", ("en",)).passage(text)
    assert "ferry leaves the harbour at noon" in passage.text
    assert [passage.text[a:b] for a, b in passage.marks] == ["ferry", "harbour", "noon"]
    assert passage.cut == (True, True)
    assert len(passage.text) <= LENGTH
    start = Marker("zebra", ("en",)).passage(text)
    assert start.text.startswith("The ferry.")
    assert start.cut == (False, True)
    assert Marker("x", ("en",)).passage("").text == ""
    assert len(Marker("x", ("en",)).passage("y" * 1000).text) == LENGTH


def test_a_page_of_one_word_takes_no_time():
    started = time.process_time()
    Marker("word other", ("en",)).passage("word " * 40_000)
    assert time.process_time() - started < 2
