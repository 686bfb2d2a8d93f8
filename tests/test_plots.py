"""Figures of a page: kept tokens are unchanged, dropped tokens are faded, nothing is moved."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from mmrr.plots import kept_tokens
from mmrr.types import KeptTokens


def test_kept_tokens_stay_and_dropped_ones_fade():
    page = Image.new("RGB", (96, 64), "black")
    shown = np.asarray(kept_tokens(page, KeptTokens(torch.tensor([0, 5], dtype=torch.int32), (2, 3))))
    assert shown.shape == (64, 96, 3)
    kept = np.zeros((64, 96), dtype=bool)
    kept[:32, :32] = kept[32:, 64:] = True
    assert not shown[kept].any()
    assert (shown[~kept] > 180).all()
