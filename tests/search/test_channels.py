"""The channels of the first stage: their weights, their sum, and the index of windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmrr.errors import MmrrError
from mmrr.search import channels
from mmrr.search.fusion import fuse, fuse_all
from mmrr.search.indexes import WINDOW_COUNTS, WINDOWS, WindowIndex, build_windows
from mmrr.types import rank

ALL = {"words", "meaning", "sight"}


def test_weights_of_channels() -> None:
    assert channels.weights(None, None, {"words"}) == {"words": 1}
    assert channels.weights(None, None, {"words", "sight"}) == {"words": 1, "sight": 1}
    assert channels.weights("hybrid", None, ALL) == channels.default(ALL)
    assert channels.weights("bm25", None, ALL) == channels.weights("words", None, ALL) == {"words": 1}
    assert channels.weights("dense", None, ALL) == {"sight": 1}
    assert channels.weights(None, {"words": 2, "meaning": 0, "sight": 1}, ALL) == {"words": 2, "sight": 1}
    assert channels.weights(None, {"meaning": 3}, ALL) == {"meaning": 1}
    for stage, chosen, available, message in (
        ("sight", None, {"words"}, "needs page vectors"),
        ("meaning", None, {"words", "sight"}, "mmrr index with --text-embedder"),
        ("hybrid", None, {"words"}, "and this index has none"),
        ("words", {"words": 1}, ALL, "leave out --first-stage words"),
        (None, {"sound": 1}, ALL, "no channel 'sound'"),
        (None, {"words": 0}, ALL, "every channel has weight 0"),
        (None, {"meaning": 1}, {"words"}, "needs vectors of the pages' text"),
    ):
        with pytest.raises(MmrrError, match=message):
            channels.weights(stage, chosen, available)


def test_weights_are_parsed() -> None:
    assert channels.parse("words=1, meaning=1,sight=0.5") == {"words": 1, "meaning": 1, "sight": 0.5}
    assert channels.parse("bm25=1,dense=2") == {"words": 1, "sight": 2}
    for text in ("words", "words=x", "words=-1", "words=inf", "words=1,words=2", ""):
        with pytest.raises(MmrrError, match="expected NAME=WEIGHT"):
            channels.parse(text)


def test_single_channels_and_the_former_sum_are_stored_as_before() -> None:
    assert channels.stored_name({"words": 1}) == "bm25"
    assert channels.stored_name({"sight": 1}) == "dense"
    assert channels.stored_name({"words": 1, "sight": 1}) == "hybrid"
    assert channels.is_former_sum({"words": 1.0, "sight": 1.0})
    assert not channels.is_former_sum({"words": 1.0, "sight": 0.5})
    assert not channels.is_former_sum({"words": 1.0, "meaning": 1.0})


def test_three_runs_are_added() -> None:
    one, two, three = (
        {"q": rank(dict(zip("abc", scores, strict=True)))} for scores in ((1, 2, 3), (5, 1, 0), (0, 9, 1))
    )
    assert fuse_all([(one, 1.0), (two, 0.5)]) == fuse(one, two, 0.5)
    scores = dict(fuse_all([(one, 1.0), (two, 2.0), (three, 0.5)])["q"])
    parts = [dict(fuse(run, {}, 0.0)["q"]) for run in (one, two, three)]
    for page in "abc":
        assert scores[page] == pytest.approx(parts[0][page] + 2 * parts[1][page] + 0.5 * parts[2][page])


def test_a_page_scores_its_best_window(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pages = [random.standard_normal((n, 8)).astype(np.float32) for n in (3, 0, 40, 1, 2, 0)]
    pages[4] = pages[2][:2].copy()  # two pages may share a window
    build_windows(pages, tmp_path)
    index = WindowIndex.load({name: tmp_path / name for name in (WINDOWS, WINDOW_COUNTS)})
    query = random.standard_normal(8).astype(np.float32)
    expected = {row: float((page @ query).max()) for row, page in enumerate(pages) if len(page)}
    assert index.search(query, 10) == pytest.approx(expected)
    for depth in (1, 2, 3):  # fewer pages than the first windows belong to
        edge = sorted(expected.values(), reverse=True)[depth - 1]
        assert index.search(query, depth) == pytest.approx({row: s for row, s in expected.items() if s >= edge})
    empty = tmp_path / "empty"
    empty.mkdir()
    build_windows([np.zeros((0, 0), np.float32)] * 2, empty)
    assert WindowIndex.load({WINDOW_COUNTS: empty / WINDOW_COUNTS}).search(query, 5) == {}
