"""The languages of pages: detected where a page has enough text, and the collection's where it has not."""

from __future__ import annotations

from typing import get_args

import Stemmer

from mmrr.config import Language
from mmrr.search import languages

ENGLISH = "The tenant shall pay the rent on the third working day of every month, and the landlord confirms it."
GERMAN = "Der Mieter zahlt die Miete am dritten Werktag eines jeden Monats, und der Vermieter bestätigt es ihm."
FRENCH = "Le locataire paie le loyer le troisième jour ouvrable de chaque mois, et le bailleur le confirme."
UKRAINIAN = "Орендар сплачує орендну плату на третій робочий день кожного місяця, і власник це підтверджує."
TABLE = "Total 12 14 15\nAmsterdam 3 4\nRotterdam 5 6\nUtrecht 8 9\nGroningen 1 2\nMaastricht 7 7"


def test_each_page_has_its_language() -> None:
    assert languages.of_pages([ENGLISH, GERMAN, FRENCH]) == ["en", "de", "fr"]
    assert languages.of_pages([UKRAINIAN]) == [languages.NONE]
    assert languages.of_pages([ENGLISH, GERMAN], "fr") == ["fr", "fr"]


def test_pages_of_few_words_have_the_language_of_the_collection() -> None:
    assert languages.of_pages([GERMAN, "", "12 %", TABLE, "Hund", GERMAN, ENGLISH]) == [*["de"] * 6, "en"]
    assert (
        languages.of_pages(["Der Mieter zahlt", "die Miete am", "dritten Werktag", "und kündigt nicht"]) == ["de"] * 4
    )
    assert languages.of_pages(["", "员工", "7"]) == ["en"] * 3
    assert languages.of_pages([]) == []


def test_a_page_of_names_is_not_taken_for_another_language() -> None:
    assert languages.of_pages([ENGLISH, TABLE]) == ["en", "en"]


def test_the_option_lists_the_languages_that_have_a_stemmer() -> None:
    assert set(get_args(Language)) == {"auto", languages.NONE, *languages.STEMMERS}
    assert set(languages.STEMMERS.values()) <= set(Stemmer.algorithms())
    assert languages.stemmer(languages.NONE) is None
    assert {"fuer", "für"} <= languages.stop_words("de")
