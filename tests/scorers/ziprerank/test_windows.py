"""ZipRerank's windows, options and commands."""

from __future__ import annotations

import json

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.scorers import ziprerank
from mmrr.scorers.ziprerank import Prepare, Score, Scorer
from tests.console import FP32, INDEX, SOIL, THESIS, artifact, manifest, mmrr, refused, run_lines, write_documents
from tests.scorers.ziprerank.reference import FULL, QUERY, TOLERANCE

# Windows


WINDOWS = {
    1: [(0, 1)],
    20: [(0, 20)],
    21: [(1, 21), (0, 11)],
    25: [(5, 25), (0, 15)],
    30: [(10, 30), (0, 20)],
    33: [(13, 33), (3, 23), (0, 13)],
    40: [(20, 40), (10, 30), (0, 20)],
    45: [(25, 45), (15, 35), (5, 25), (0, 15)],
}


@pytest.mark.parametrize("n", WINDOWS)
def test_windows_slide_from_the_back_to_the_front(n):
    assert list(ziprerank.windows(n, 20, 10)) == WINDOWS[n]


def test_training_settings_of_a_checkpoint(checkpoint):
    config = checkpoint.config()
    assert ziprerank.resolve(Prepare(), config).max_side == 1024
    config = {**config, "ziprerank": {"max_side": 0, "window": 6}}
    assert ziprerank.resolve(Prepare(), config).max_side == 0
    assert ziprerank.resolve(Prepare(64), config).max_side == 64
    assert ziprerank.taught(config) == {"max_side": 0, "window": 6, "keep": 1.0, "interaction": "input"}
    for wrong in ({"window": 40}, {"window": "6"}, {"letters": 6}, {"keep": 1}, {"keep": 2.0}, {"interaction": "all"}):
        with pytest.raises(MmrrError):
            ziprerank.taught({**config, "ziprerank": wrong})


def test_no_candidates_no_windows():
    assert list(ziprerank.windows(0, 20, 10)) == []


class Watched(list):
    """A list of caches that records which of them are read."""

    def __init__(self, states):
        super().__init__(states)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_the_order_is_that_of_windows_one_by_one(scorer, images, states):
    """Seven candidates in windows of three, window by window. A cache is read when its window is scored."""
    many = Watched([states[i % 5] for i in (0, 1, 2, 3, 4, 2, 1)])
    options = Score(window=3, stride=2)
    scores = scorer.score(QUERY, many, scorer.shared_state(), options)
    order = list(range(7))
    read = []
    for start, end in ((4, 7), (2, 5), (0, 3)):
        read += order[start:end]
        logits = scorer.logits(QUERY, many[:], order[start:end], options)
        order[start:end] = [order[start + i] for i in logits.sort(descending=True, stable=True).indices.tolist()]
    assert [item for item in many.read if isinstance(item, int)] == read
    assert scores.dtype == torch.float32
    assert sorted(range(7), key=lambda i: -float(scores[i])) == order
    assert sorted(scores.tolist()) == [1, 2, 3, 4, 5, 6, 7]


def test_scores_are_ranks(scorer, states):
    logits = scorer.logits(QUERY, states, range(5), FULL)
    scores = scorer.score(QUERY, states, scorer.shared_state(), FULL)
    assert torch.equal(5 - scores.long(), logits.argsort(descending=True).argsort())
    assert scorer.score(QUERY, states[:1], scorer.shared_state(), FULL).tolist() == [1.0]
    assert scorer.score(QUERY, [], scorer.shared_state(), FULL).tolist() == []


def test_ties_keep_the_first_stages_order(scorer, monkeypatch):
    monkeypatch.setattr(Scorer, "logits", lambda self, query, states, items, options: torch.tensor([1.0, 2, 1, 2, 2]))
    assert scorer.score("q", [{}] * 5, {}, FULL).tolist() == [2, 5, 1, 4, 3]


def test_the_order_of_candidates_matters(scorer, states):
    """A page's logit depends on its letter and on the pages before it."""
    forward = scorer.logits(QUERY, states, [0, 1, 2], FULL)
    backward = scorer.logits(QUERY, states, [2, 1, 0], FULL)
    assert (forward - backward.flip(0)).abs().max() > 100 * TOLERANCE


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 21}, "window 21: expected 2 to 20"),
        ({"window": 1}, "window 1"),
        ({"stride": -1}, "stride -1: expected 1 to 19"),
        ({"stride": 20}, "stride 20"),
        ({"window": 8, "stride": 8}, "stride 8: expected 1 to 7"),
        ({"keep": -0.2}, "keep -0.2: expected"),
        ({"keep": 1.1}, "keep 1.1"),
        ({"keep": float("nan")}, "keep nan"),
        ({"interaction": "query_only"}, "interaction 'query_only': expected input or hidden"),
        ({"head": "bf16"}, "head 'bf16': expected float32 or bfloat16"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(MmrrError, match=message):
        Score(**options)


@pytest.mark.parametrize("max_side", [-2, 31])
def test_a_max_side_below_one_token_is_refused(checkpoint, max_side):
    with pytest.raises(MmrrError, match=f"max_side {max_side}: expected 32 or more pixels, or 0"):
        ziprerank.resolve(Prepare(max_side), checkpoint.config())
    assert ziprerank.resolve(Prepare(0), checkpoint.config()) == Prepare(0)


# The commands


def test_index_precache_rerank(tmp_path, zip_path):
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    work = tmp_path / "work"
    mmrr("index", docs, "--work", work, *INDEX)
    cached = artifact(mmrr("precache", "--work", work, "--scorer", "ziprerank", "--scorer-model", zip_path, *FP32))
    assert manifest(cached)["config"]["options"] == {"max_side": 1024}
    asked = "soil moisture and the thesis table by month"
    result = mmrr("rerank", asked, "--work", work, "--candidates", 4)
    run = run_lines(artifact(result) / "run.trec")["query"]
    assert [score for _, score in run] == [4.0, 3.0, 2.0, 1.0]
    options = ("--score-option", "window=3", "--score-option", "stride=2", "--score-option", "keep=0.5")
    pruned = artifact(mmrr("rerank", asked, "--work", work, "--candidates", 4, *options))
    assert manifest(pruned)["config"]["score"]["keep"] == 0.5
    assert "expected 2 to 20" in refused("rerank", asked, "--work", work, "--score-option", "window=40")
    listed = {family["family"]: family for family in json.loads(mmrr("models", "--json").stdout)["families"]}
    assert listed["ziprerank"]["checkpoints"] == ["small-ziprerank", "mtri-admin/ZipRerank"]
    (window,) = [option for option in listed["ziprerank"]["options"] if option["name"] == "window"]
    assert (window["stage"], window["type"], window["default"]) == ("rerank", "int", 0)
