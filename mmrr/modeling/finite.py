"""Refuses numbers that are no numbers: damaged weights and overflows give NaN, and NaN ranks nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from mmrr.errors import MmrrError

ADVICE = "try --dtype float32, or check the weights"


def expect_finite(what: str, model: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise MmrrError that names ``what`` and ``model`` if a tensor on the CPU holds NaN or infinity."""
    for name, tensor in tensors.items():
        # aminmax passes NaN on, and takes a fortieth of the time of torch.isfinite.
        if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, torch.aminmax(tensor))):
            raise MmrrError(f"{what}: {model} gave {name} that are not finite; {ADVICE}")
