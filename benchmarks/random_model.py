"""Writes a checkpoint with random weights in bfloat16 and the sizes of a published Qwen3-VL, for timing whole commands.

Only the vocabulary is smaller than the published one: no score depends on its size. ``SHAPE`` is one of reader,
qwen3-vl-2b, qwen3-vl-4b and qwen3-vl-8b. To time a scorer alone, ``mmrr bench SHAPE`` writes such a checkpoint itself.

    python -m benchmarks.random_model SHAPE FOLDER

Feeds the section "Time of a query, 2B shape" of BENCHMARKS.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from mmrr import random_checkpoint


def main(name: str, folder: Path) -> None:
    shape = random_checkpoint.SHAPES[name]
    model = random_checkpoint.new_model(shape, dtype=torch.bfloat16)
    random_checkpoint.save(model, folder, shape.max_tokens, torch.bfloat16)
    print(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
