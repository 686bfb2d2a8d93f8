"""Score fusion: per query, the weighted sum of standardised scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import read_run
from mmrr.search.fusion import fuse
from mmrr.types import Hit, rank
from tests.console import mmrr, refused


def test_scores_are_standardised_and_added() -> None:
    first, second = {"q": rank({"a": 3.0, "b": 1.0})}, {"q": rank({"a": 10.0, "b": 30.0})}
    assert fuse(first, second, 0.5) == {"q": [Hit("a", 0.5), Hit("b", -0.5)]}
    assert [hit.page_id for hit in fuse(first, second, 2.0)["q"]] == ["b", "a"]
    assert fuse(first, {"q": rank({"a": 1000.0, "b": 3000.0})}, 0.5) == fuse(first, second, 0.5)


def test_a_page_or_query_that_is_missing_in_one_run() -> None:
    first, second = {"q": rank({"a": 2.0, "b": 0.0}), "only": rank({"x": 1.0})}, {"q": rank({"c": 5.0, "b": 1.0})}
    fused = fuse(first, second, 1.0)
    assert dict(fused["q"]) == {"a": 1.0 - 1.0, "b": -1.0 - 1.0, "c": -1.0 + 1.0}
    assert fused["only"] == [Hit("x", 0.0)]
    assert fuse({}, {}, 1.0) == {}


def test_a_page_that_alone_was_found_gains_from_it() -> None:
    """One score, or several equal ones, have no deviation; a page that is missing beside them is lower all the same."""
    first = {"q": rank({"a": 3.0, "b": 2.0, "c": 1.0})}
    for second in ({"c": 7.0}, {"c": 7.0, "b": 7.0}):
        fused = dict(fuse(first, {"q": rank(second)}, 1.0)["q"])
        before = dict(fuse(first, {"q": []}, 1.0)["q"])
        assert fused["a"] == before["a"] - 2.0
        assert fused["c"] == before["c"]


def test_a_run_with_equal_scores_does_not_change_the_order() -> None:
    """For a document without a text layer, text search lists all pages with the score 0."""
    images, nothing = {"q": rank({"b": 0.9, "a": 0.8, "c": 0.1})}, {"q": rank({"a": 0.0, "b": 0.0, "c": 0.0})}
    assert [hit.page_id for hit in fuse(images, nothing, 1.0)["q"]] == ["b", "a", "c"]
    assert fuse(images, nothing, 1.0) == fuse(images, {"q": []}, 1.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_an_invalid_weight(weight: float) -> None:
    with pytest.raises(MmrrError, match="expected 0 or more"):
        fuse({}, {}, weight)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.trec").write_text("q Q0 d/0001 1 2 t\nq Q0 d/0002 2 1 t\n")
    (tmp_path / "b.trec").write_text("q Q0 d/0002 1 9 t\nq Q0 d/0001 2 1 t\n")
    command = ("blend", tmp_path / "a.trec", tmp_path / "b.trec", "--output", tmp_path / "c.trec")
    mmrr(*command)
    expected = fuse(read_run(tmp_path / "a.trec"), read_run(tmp_path / "b.trec"), 0.3)
    assert read_run(tmp_path / "c.trec") == expected
    mmrr(*command, "--weight", "3")
    assert read_run(tmp_path / "c.trec")["q"][0].page_id == "d/0002"
    assert "expected 0 or more" in refused(*command, "--weight", "-1")
