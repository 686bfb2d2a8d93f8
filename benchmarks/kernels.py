"""Counts the operators that a query launches in miniReranker's scoring, with pages apart and with pages joined.

On a device each is at least one kernel. The count does not depend on the machine: it is taken on the CPU, on a small
random model with the numbers of layers of Qwen3-VL-2B.

    python -m benchmarks.kernels [CANDIDATES]

Feeds the section "On a device" of docs/minireranker.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from mmrr import random_checkpoint
from mmrr.modeling.checkpoints import resolve
from mmrr.random_checkpoint import Shape
from mmrr.scorers import minireranker
from mmrr.workspace.files import HashCache

#: Operators that only describe memory in another way, or allocate it. They start nothing on a device.
_NO_KERNEL = frozenset(
    {
        "aten::_local_scalar_dense", "aten::_reshape_alias", "aten::_unsafe_view", "aten::alias", "aten::as_strided",
        "aten::broadcast_tensors", "aten::chunk", "aten::detach", "aten::empty", "aten::empty_like",
        "aten::empty_strided", "aten::expand", "aten::expand_as", "aten::flatten", "aten::item", "aten::lift_fresh",
        "aten::movedim", "aten::narrow", "aten::numpy_T", "aten::permute", "aten::resize_", "aten::resolve_conj",
        "aten::resolve_neg", "aten::select", "aten::slice", "aten::split", "aten::split_with_sizes", "aten::squeeze",
        "aten::t", "aten::transpose", "aten::unbind", "aten::unflatten", "aten::unfold", "aten::unsqueeze",
        "aten::view", "aten::view_as"
    }
)  # fmt: skip
#: Operators that hold others: one of these is counted as one kernel, as it is on a device.
_FUSED = frozenset({"aten::scaled_dot_product_attention"})


# Any: torch does not type its profiler.
def operators(profiled: Any) -> Counter[str]:
    """The operators of a profile by name: the innermost ones, without those that start nothing."""
    found: Counter[str] = Counter()

    def visit(event: Any) -> None:
        inner = [child for child in event.cpu_children if child.name.startswith("aten::")]
        if event.name in _FUSED or not inner:
            if event.name.startswith("aten::") and event.name not in _NO_KERNEL:
                found[event.name] += 1
            return
        for child in inner:
            visit(child)

    for event in profiled.events():
        if event.cpu_parent is None:
            visit(event)
    return found


def launched(profiled: Any) -> int:
    """The number of operators of a profile that start something on a device."""
    return sum(operators(profiled).values())


def main(candidates: int) -> None:
    shape = Shape(
        28, 32, 64, 4, 2, 16, vision_layers=2, vision_hidden=32, vision_heads=2, vision_mlp=64, deepstack=(0,)
    )
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint.save(random_checkpoint.new_model(shape), Path(folder), shape.max_tokens, torch.float32)
        checkpoint = resolve(folder, None, HashCache(Path(folder) / "hashes.json"))
        for codec in ("none", "int4"):
            prepare = minireranker.resolve(minireranker.Prepare(codec=codec), checkpoint.config())
            scorer = minireranker.load(checkpoint, prepare, torch.device("cpu"), torch.float32)
            images = [Image.new("RGB", (128, 64 + 32 * (i % 5)), (i, 2 * i, 50)) for i in range(candidates)]
            pages, shared = scorer.prepare(images, [None] * candidates), scorer.shared_state()
            query = scorer.encode_query("What was the largest item of expenditure?")
            for joins in (False, True):
                scorer.backbone.joins_pages = joins
                with profile(activities=[ProfilerActivity.CPU]) as profiled:
                    scorer.score(query, pages, shared, minireranker.Score())
                found = operators(profiled)
                how = "joined" if joins else "apart"
                copies = found["aten::copy_"] + found["aten::index_copy_"]
                print(f"{codec:5} {candidates} pages {how:7} {sum(found.values()):6} operators, {copies} copies")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 100)
