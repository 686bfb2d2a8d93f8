"""Words of text: every spelling of a word that people type finds the page, and words that differ are told apart."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mmrr.search.indexes import TextIndex
from mmrr.search.words import Words, normalise

#: Pages of one document, as the text layer has them.
LEASE = [
    "Kündigung\nDer Mieter kann den Vertrag mit einer Frist von drei Monaten kündigen.\nDie Kündigung bedarf der Form.",
    "Mietzahlung\nDie Miete ist bis zum dritten Werktag des Monats zu zahlen.",
    "Haustiere\nDas Halten von Hunden ist nur mit Zustimmung der Vermieterin gestattet.",
    "Straßenreinigung\nDie Mieterinnen und Mieter der Erdgeschosswohnungen fegen die Straße.",
]
TABLES = [
    f"Table {number}\nSection {number} of the contract. Annex {letter}. Vitamin {letter}.\nValues in the table below."
    for number, letter in enumerate("ABCDEFGHI", 1)
]
NUMBERS = [
    "The budget is 12,500 euros, up 3.5% from 2019.",
    "The budget is 12.500 Euro.",
    "The budget is 12500 euros.",
    "Part number AB-1234/5 and C++ and C#.",
    "Part number AB-1235/5 and C and D.",
]
HYPHENS = [
    "Warming is driving cli\u00ad\nmate change in the Arctic.",
    "The land\u00adlord shall re\u00admove the scaf\u00adfolding.",
    "A five\u00ad\nstar hotel with a swim-\nming pool.",
    "This is a well\u00ad\nknown and state-of-the\u00ad\nart method.",
]
REPORT = [
    "第一章 公司概况\n本公司成立于二零零三年，总部位于杭州。",
    "第二章 员工人数\n截至报告期末，公司员\n工总数为三千四百人。",
    "第三章 营业收入\n本年度营业收入为十二亿元人民币。",
]
ASIAN = ["ประชาชนทุกคนมีสิทธิในการศึกษา", "コンピューターを使う仕事", "물은 생명이다", "ພາສາລາວ ແມ່ນ ພາສາ"]
NFD = ["Ku\u0308ndigung der Wohnung", "Le pre\u0301avis est de trois mois", "the ﬁnal ｒｅｐｏｒｔ"]


def found(pages: list[str], query: str) -> list[int]:
    """The numbers of the pages with a word of the query, the best first."""
    scores = TextIndex.build(pages).scores(query)
    return [int(row) + 1 for row in np.argsort(-scores, kind="stable") if scores[row] > 0]


@pytest.mark.parametrize(
    ("pages", "first", "queries"),
    [
        (LEASE, 1, ["Wie kündige ich?", "kuendigung", "Kundigung", "KÜNDIGUNG"]),
        (LEASE, 3, ["Hund"]),
        (LEASE, 4, ["Strasse", "STRASSE", "Straße"]),
        (TABLES, 7, ["Table 7", "annex g"]),
        (TABLES, 4, ["vitamin D", "Annex D"]),
        (TABLES, 1, ["Vitamin A", "vitamin a", "What is in Annex A?"]),
        (TABLES, 9, ["Annex I", "annex i"]),
        (NUMBERS, 1, ["3.5%", "3,5 %", "3.5"]),
        (NUMBERS, 4, ["C++", "c#", "AB-1234"]),
        (HYPHENS, 1, ["climate", "climate change"]),
        (HYPHENS, 2, ["landlord remove", "scaffolding"]),
        (HYPHENS, 3, ["five-star", "five star", "fivestar", "swimming"]),
        (HYPHENS, 4, ["well-known", "wellknown", "state-of-the-art"]),
        (REPORT, 2, ["公司有多少员工", "员工"]),
        (ASIAN, 1, ["การศึกษา", "สิทธิ"]),
        (ASIAN, 2, ["コンピューター", "ｺﾝﾋﾟｭｰﾀｰ"]),
        (ASIAN, 3, ["물"]),
        (ASIAN, 4, ["ພາສາ"]),
        (NFD, 1, ["Kündigung", "kuendigung", "Kündigung"]),
        (NFD, 2, ["préavis", "preavis"]),
        (NFD, 3, ["final", "report"]),
    ],
)
def test_the_page_is_found_first(pages: list[str], first: int, queries: list[str]) -> None:
    for query in queries:
        assert found(pages, query)[:1] == [first], query


def test_words_that_only_look_alike_find_nothing() -> None:
    assert found(LEASE, "Was ist der die das") == []
    assert found(NUMBERS, "c") == [5]
    assert set(found(NUMBERS, "12,500")) == {1, 2, 3}
    assert found(TABLES, "such a one is") == []
    assert found(["Do I pay?", "A tenant pays."], "Do I need a tenant") == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Theses of THE mosses", "these moss"),
        ("is the a of", ""),
        ("isn't John's l’eau", "isn john eau"),
        ("e-mail R&D 10-K x-ray", "mail email r&d 10 10k ray xray"),
        ("U.S. 3D H₂O revenue¹ m²", "us 3d h2o revenue1 revenu m2"),
        ("1,234,567.89 12'500 0,125 12.05.2024", "1234567.89 12500 0.125 12.05.2024 12 05 2024"),
        ("[3,4] 2010–2012 5%", "3.4 3 4 2010 2012 5 5%"),
        ("THIS IS A TEST. A test", "test test"),
        ("data_set a/b www.example.com", "data set b www exampl com"),
        ("Müller naïve Łódź", "muller mueller naiv lodz"),
        ("12\u00a0500 ½ \u200bzero\u2060width", "12500 1 2 zerowidth"),
        ("x" * 100, "x" * 64),
        ("हिन्दी में", "हिन्दी में"),
    ],
)
def test_words_of_english_text(text: str, words: str) -> None:
    assert Words(["en"]).of_page(text, "en") == words.split()


def test_a_query_is_cut_for_every_language_of_the_pages() -> None:
    words = Words(["de", "en"])
    assert words.of_query("housing Kündigung") == ["housing", "hous", "kundig", "kundigung", "kuendigung"]
    assert words.of_page("housing", "de") == ["housing"]
    assert words.of_query("Was ist die") == []  # "die" is a German stop word, and German is the main language


def test_normalised_text_is_normalised() -> None:
    for text in (*LEASE, *HYPHENS, *REPORT, *NFD, "№ 5 … ① m² \ufffeend\ufffe"):
        once = normalise(text)
        assert normalise(once) == once


@pytest.mark.parametrize(
    "text", ["'-.,&", "a" * 100_000, "1,2" * 20_000, "-\n" * 20_000, "\u0300" * 10_000, "\udc80 x", "a-" * 20_000]
)
def test_odd_text_takes_no_time(text: str) -> None:
    started = time.process_time()
    Words(["en"]).of_page(text, "en")
    assert time.process_time() - started < 1
