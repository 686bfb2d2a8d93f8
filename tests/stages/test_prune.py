"""``choose`` keeps the k = max(1, ceil(share * T)) tokens of highest saliency, in raster order."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from mmrr.modeling.saliency import choose
from mmrr.types import Embedding


def embedding(saliency, grid):
    return Embedding(torch.zeros(1, 4), torch.tensor(saliency, dtype=torch.float32), grid)


def test_the_most_salient_tokens_in_raster_order():
    keep = choose(embedding([0.1, 0.9, 0.3, 0.8, 0.2, 0.7], (2, 3)), (2, 3), 0.5)
    assert keep.indices.tolist() == [1, 3, 5]
    assert keep.indices.dtype == torch.int32
    assert keep.grid == (2, 3)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.01, [3]), (0.25, [3]), (0.26, [0, 3]), (0.5, [0, 3]), (0.51, [0, 2, 3]), (1, [0, 1, 2, 3])],
)
def test_the_number_kept_is_rounded_up_and_never_zero(share, expected):
    assert choose(embedding([3, 1, 2, 4], (2, 2)), (2, 2), share).indices.tolist() == expected


def test_ties_go_to_the_earlier_token():
    flat = choose(embedding([1.0] * 12, (3, 4)), (3, 4), 0.5)
    assert flat.indices.tolist() == [0, 1, 2, 3, 4, 5]
    some = choose(embedding([0, 5, 1, 5, 1, 5, 1, 1], (2, 4)), (2, 4), 0.625)
    assert some.indices.tolist() == [1, 2, 3, 4, 5]
    large = choose(embedding([1.0] * 2000, (40, 50)), (40, 50), 0.5)  # large enough to show an unstable sort
    assert large.indices.tolist() == list(range(1000))


def test_keeping_all_keeps_all():
    values = torch.rand(77, generator=torch.Generator().manual_seed(0)).tolist()
    assert choose(embedding(values, (7, 11)), (7, 11), 1.0).indices.tolist() == list(range(77))
    assert choose(embedding(values, (7, 11)), (5, 4), 1.0).indices.tolist() == list(range(20))


def test_saliency_of_another_grid_is_resampled_to_the_scorers():
    """The right half of the embedder's grid is salient, so the right half of the scorer's grid is kept, at any size."""
    coarse = [0.0, 0.0, 1.0, 1.0] * 2  # (2, 4)
    fine = choose(embedding(coarse, (2, 4)), (4, 8), 0.5)
    assert fine.grid == (4, 8)
    assert fine.indices.tolist() == [row * 8 + column for row in range(4) for column in range(4, 8)]
    small = choose(embedding(coarse, (2, 4)), (1, 2), 0.5)
    assert small.indices.tolist() == [1]
    turned = choose(embedding(coarse, (2, 4)), (4, 2), 0.5)  # rows and columns are not swapped
    assert turned.indices.tolist() == [1, 3, 5, 7]


def test_shrinking_averages_what_it_covers():
    """A thin salient line must not fall between the sampled points."""
    line = [1.0 if i % 8 == 3 else 0.0 for i in range(64)]  # column 3 of (8, 8)
    assert choose(embedding(line, (8, 8)), (2, 2), 0.5).indices.tolist() == [0, 2]


@pytest.mark.parametrize("share", ["0.07", "0.28", "0.55"])
def test_a_share_is_the_number_that_was_written(share):
    """0.07 * 100 is 7.000000000000001 in binary, which must not keep one token too many."""
    wrong = [
        n
        for n in range(1, 300)
        if len(choose(embedding([1.0] * n, (1, n)), (1, n), float(share)).indices)
        != max(1, math.ceil(Fraction(share) * n))
    ]
    assert wrong == []
