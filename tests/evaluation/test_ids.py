"""Ids of runs and of judgements that do not match: an error with both kinds, or a count."""

from __future__ import annotations

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation import ids
from mmrr.types import Hit


@pytest.mark.parametrize(
    ("judged", "ranked"),
    [
        ("doc.pdf/0006", "doc.pdf/6"),
        ("doc.pdf/0006", "doc/6"),
        ("sub/doc.pdf/0006", "doc.pdf/0006"),
        ("Doc.PDF/0006", "doc.pdf/0006"),
        ("doc.pdf/0006", "doc_page_6"),
        ("doc.pdf/0006", "doc.pdf#p6"),
        ("q06", "q6"),
    ],
)
def test_an_id_in_another_spelling_is_recognised(judged: str, ranked: str) -> None:
    assert ids.other_spellings([judged], [ranked, "other.pdf/0006", "doc.pdf/0007"]) == {judged: ranked}


def test_what_is_the_same_or_fits_several_is_left_out() -> None:
    assert ids.other_spellings(["a.pdf/0006"], ["a.pdf/0006"]) == {}
    assert ids.other_spellings(["a.pdf/0006"], ["x/a.pdf/0006", "y/a.pdf/0006"]) == {}
    assert ids.other_spellings(["map6"], ["ma/6"]) == {}


def test_a_run_without_any_judged_page_is_an_error_with_both_kinds_of_id() -> None:
    run = {"q": [Hit("doc.pdf/6", 1.0), Hit("doc.pdf/7", 0.5)]}
    with pytest.raises(MmrrError) as error:
        ids.check_pages("given", run, {"q": {"doc.pdf/0006": 1}})
    assert str(error.value) == (
        "none of the 1 judged pages is in the given run (run: doc.pdf/6, doc.pdf/7; judged: doc.pdf/0006); "
        "doc.pdf/0006 is probably doc.pdf/6: write the same ids in both"
    )
    with pytest.raises(MmrrError, match=r"run: 17; judged: 18\)$"):
        ids.check_pages("given", {"q": [Hit("17", 1.0)]}, {"q": {"18": 1}})


def test_a_run_that_found_nothing_is_no_error() -> None:
    wrong = {"q": [Hit("a.pdf/0001", 1.0)]}
    assert ids.check_pages("given", wrong, {"q": {"a.pdf/0002": 1}}) == {}  # another page of the same document
    known = {"a.pdf/0001", "b.pdf/0001", "a.png/0001"}
    assert ids.check_pages("given", wrong, {"q": {"b.pdf/0001": 1}}, known) == {}
    assert ids.check_pages("given", wrong, {"q": {"a.png/0001": 1}}, known) == {}  # no other spelling: it is indexed
    assert ids.check_pages("given", {"q": []}, {"q": {"b.pdf/0001": 1}}) == {}


def test_some_of_the_ids_in_another_spelling() -> None:
    run = {"q": [Hit("a.pdf/0001", 1.0), Hit("b.pdf/2", 0.5)]}
    assert ids.check_pages("given", run, {"q": {"a.pdf/0001": 1, "b.pdf/0002": 1}}) == {"b.pdf/0002": "b.pdf/2"}


def test_queries_and_pages_of_an_index() -> None:
    with pytest.raises(MmrrError, match=r"the given run answers none of the 1 judged queries \(run: 1; judged: q1\)$"):
        ids.check_queries("given", {"1": []}, {"q1": {}})
    with pytest.raises(MmrrError, match="q01 is probably q1"):
        ids.check_queries("given", {"q1": []}, {"q01": {}})
    assert ids.unknown_pages({"q": {"a/0001": 1, "b/0001": 1}}, {"a/0001"}, "qrels") == ["b/0001"]
    with pytest.raises(MmrrError, match=r"qrels: none of the 1 judged pages is in the index .* a/1 is probably a/0001"):
        ids.unknown_pages({"q": {"a/1": 1}}, {"a/0001"}, "qrels")
