"""``mmrr index --language``, and what the search makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmrr.search import words
from tests.console import INDEX, artifact, manifest, mmrr, refused, write_documents

LEASE = [
    "Kündigung: Der Mieter kann den Vertrag mit einer Frist\nvon drei Monaten kündigen.",
    "Das Halten von Hunden ist nur mit der Zustimmung\nder Vermieterin gestattet.",
]
LETTER = ["The tenant may keep a hound and two cats in the house\nif the landlord agrees in writing."]


def pages(work: Path, query: str, *more: object) -> list[str]:
    found = mmrr("retrieve", query, "--work", work, "--json", *more)
    return [page["page_id"] for page in json.loads(found.stdout)["queries"][0]["results"]]


def test_each_page_is_searched_in_its_language(tmp_path: Path) -> None:
    docs, work = write_documents(tmp_path / "docs", lease=LEASE, letter=LETTER), tmp_path / "w"
    made = artifact(mmrr("index", docs, "--work", work, *INDEX))
    assert manifest(made)["content"]["languages"] == {"de": 2, "en": 1}
    for query in ("Wie kündige ich?", "kuendigung"):
        assert pages(work, query) == ["lease.pdf/0001"]
    assert pages(work, "Hund") == ["lease.pdf/0002"]
    assert pages(work, "Was ist der die das") == []
    assert pages(work, "a house for my cat") == ["letter.pdf/0001"]
    document = ("--scope", "document", "--document", "lease.pdf")
    assert pages(work, "Hund", *document) == ["lease.pdf/0002", "lease.pdf/0001"]

    english = artifact(mmrr("index", docs, "--work", work, "--language", "en", *INDEX))
    assert manifest(english)["config"]["language"] == "en"
    assert pages(work, "Wie kündige ich?") == []
    mmrr("rm", "--document", "letter.pdf", "--work", work)
    listed = json.loads(mmrr("ls", "--work", work, "--json").stdout)["artifacts"]
    (current,) = [one for one in listed if one["name"].startswith("index/") and one["current"]]
    assert "language en" in current["how"]


def test_an_index_of_other_words_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs, work = write_documents(tmp_path / "docs", lease=LEASE), tmp_path / "w"
    mmrr("index", docs, "--work", work, *INDEX)
    monkeypatch.setattr(words, "VERSION", words.VERSION + 1)
    assert "run mmrr index again" in refused("retrieve", "Hund", "--work", work)
