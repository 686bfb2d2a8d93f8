"""``mmrr bench``: the table has every way of scoring, and its FLOPs agree with torch's counter."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmrr.evaluation._flops import Cost
from mmrr.evaluation.latency import Plan, bench
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from tests.conftest import CPU
from tests.console import FP32, mmrr, refused
from tests.scorers.kalm.reference import write_checkpoint

SIZE = (160, 224)


@pytest.fixture
def scorer(tiny):
    return Scorer(tiny, Prepare(band="1:4"), CPU, torch.float32)


def counted(work) -> int:
    """FLOPs of matrix products and attention by torch's counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_flops_equal_the_count_of_torch(scorer, page_images):
    """Within 2 %. torch counts causal attention in full; mmrr counts the half that is needed."""
    query = "When is the thesis due, and who has to sign it before it is handed in?"
    page = page_images[0]
    grid = scorer.grid(*page.size)
    _, suffix = scorer.segments(query)
    cost = Cost(scorer.backbone.config, len(suffix), len(scorer.before), scorer.band)
    tokens = len(scorer.before) + grid[0] * grid[1] + 2 + len(suffix)
    half = cost.text.num_hidden_layers * tokens**2 * cost.attend / 2
    stock = counted(lambda: scorer.dense(query, [page], "vision-first"))
    assert cost.dense(grid) + half == pytest.approx(stock, rel=0.02)
    states, shared = scorer.prepare([page], [None]), scorer.shared_state()
    once = counted(lambda: scorer.score(query, states, shared, Score()))
    twice = counted(lambda: scorer.score(query, states * 2, shared, Score()))
    assert cost.cached(grid[0] * grid[1], scorer.band) == pytest.approx(twice - once, rel=0.02)
    assert cost.tower(grid) == pytest.approx(counted(lambda: scorer.backbone.vision([page])), rel=0.02)
    tokens = len(scorer.before) + grid[0] * grid[1] + 2
    half = (scorer.band[1] - 1) * tokens**2 * cost.attend / 2
    reading = counted(lambda: scorer.prepare([page], [None]))
    assert cost.tower(grid) + cost.prefix(grid[0] * grid[1]) + half == pytest.approx(reading, rel=0.02)


def test_every_way_is_timed(scorer, tmp_path):
    plan = Plan(
        SIZE, ((64, 96),), candidates=(2, 3), queries=(2,), codecs=("none", "int4"), repeats=1, dense_pages=1, batch=2
    )
    found = bench(scorer, plan, tmp_path / "work")
    names = [row.what for row in found.rows]
    assert names == [
        "dense, one by one",
        "dense, batched",
        *["page KV in memory, whole model"] * 2,
        *["mini none, cold disk", "mini none, page cache"] * 2,
        "mini none, resident",
        "mini none, resident, 2 queries",
        *["mini int4, cold disk", "mini int4, page cache"] * 2,
        "mini int4, resident",
    ]
    assert all(row.ms > 0 and row.flops > 0 and row.limit_flops > 1e8 for row in [*found.rows, *found.once])
    tower, dense, precache, whole = (row.flops for row in found.once)
    assert whole == tower + precache
    assert tower + dense == found.rows[0].flops / 3  # for three candidates
    assert precache < dense / 2  # half of the tokens, fewer layers
    by_name = {row.what: row for row in found.rows}
    assert by_name["mini int4, resident"].page_bytes < by_name["mini none, resident"].page_bytes / 4
    assert by_name["dense, one by one"].timed == 1
    assert by_name["mini none, resident"].flops < by_name["dense, batched"].flops
    assert found.limit.flops > 1e9
    small, page = found.growth
    assert (small.tokens, small.kept, page.tokens, page.kept) == (6, 3, 35, 18)
    assert small.page_bytes < page.page_bytes / 3
    assert (page.dense_ms, page.mini_ms) == (by_name["dense, one by one"].ms, by_name["mini none, resident"].ms)
    assert small.dense_ms > 0
    assert small.mini_ms > 0


@pytest.mark.slow
def test_other_scorers_are_timed_too(tmp_path, tiny_path):
    """They are timed from their own page caches. Their FLOPs are not counted."""
    write_checkpoint(tmp_path / "kalm")
    both = f"ziprerank={tiny_path}+max_side=0,kalm={tmp_path / 'kalm'}"
    command = ("bench", tiny_path, "--tokens", "35", "--candidates", "3", "--repeats", "1", "--codec", "int8")
    command = (*command, "--queries", "1", "--scorers", both, *FP32)
    rows = {row["what"]: row for row in json.loads(mmrr(*command, "--json").stdout)["rows"]}
    kalm, zips = ([row for what, row in rows.items() if what.startswith(name)] for name in ("kalm", "ziprerank"))
    assert [len(kalm), len(zips)] == [2, 2]
    assert all(row["ms"] > 0 and row["page_bytes"] > 0 and row["flops"] == 0 for row in [*kalm, *zips])
    assert "kalm" in mmrr(*command).stdout
    assert "no scorer family 'zip'" in refused("bench", tiny_path, "--scorers", "zip")


def test_a_batched_stock_forward_equals_single_forwards(scorer):
    """Equal within 1e-4 in float32."""
    images = [Image.effect_noise(SIZE, sigma).convert("RGB") for sigma in (20, 60, 100)]
    singles = scorer.dense("lorem", images, "vision-first")
    assert torch.allclose(scorer.dense_batch("lorem", images), singles, atol=1e-4)


@pytest.mark.slow
def test_the_command(tmp_path, tiny_path):
    command = ("bench", tiny_path, "--tokens", "35", "--candidates", "2,1", "--repeats", "1", "--codec", "int8")
    found = json.loads(mmrr(*command, "--json", "--output", tmp_path / "latency.png").stdout)
    assert found["tokens"] <= 35
    assert len(found["growth"]) == 1
    assert {row["candidates"] for row in found["rows"]} == {1, 2}
    assert Image.open(tmp_path / "latency.png").width > 500
    table = mmrr(*command, "--tokens", "35,12", "--folder", tmp_path).stdout
    assert "pages of other sizes" in table
    assert "expected numbers from 4" in refused("bench", tiny_path, "--tokens", "1280,2")
    assert "page KV in memory, whole model" in table
    assert "language model, precache" in table
    assert [path.name for path in tmp_path.iterdir()] == ["latency.png"]  # temporary files are deleted
    assert "expected numbers from 1" in refused("bench", tiny_path, "--candidates", "many")
    assert "codec 'zip'" in refused("bench", tiny_path, "--codec", "zip")
