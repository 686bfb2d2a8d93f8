"""Steps of ``benchmarks/gpu.sh`` that are no command of mmrr: reading pages, and the table.

    python -m benchmarks.gpu pages SHAPE DEVICE       pages a second of embed and precache, as JSON
    python -m benchmarks.gpu table FOLDER             a Markdown table of the JSON files of a run

``SHAPE`` is a name of ``mmrr.random_checkpoint.SHAPES``. The random weights are made on the device. Pages are noise of
1,280 visual tokens. They are read in batches, as ``mmrr index`` and ``mmrr precache`` read them, and one by one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmrr import random_checkpoint
from mmrr.config import Machine
from mmrr.embedders import qwen3_vl
from mmrr.modeling.devices import pages_together, resolve_device, resolve_dtype
from mmrr.scorers import minireranker
from mmrr.types import KeptTokens

#: Batches of pages that are timed, after one that is not.
_BATCHES = 2
#: Steps whose rows the table has, in order.
_BENCHES, _PAGES = ("bench-2b", "bench-8b", "bench-tiny"), ("pages-2b", "pages-8b", "pages-tiny")


def pages(name: str, device_name: str) -> dict[str, object]:
    """Pages a second and peak bytes of embed and precache."""
    device = resolve_device(device_name)
    dtype = resolve_dtype("auto", device)
    side = (32 * 4, 32 * 4) if name == "tiny" else (32 * 32, 32 * 40)
    n = max(2, pages_together(device))
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (*side[::-1], 3), np.uint8)) for i in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, model = random_checkpoint.in_memory(name, Path(folder), device, dtype)
        prepare = minireranker.resolve(minireranker.Prepare(), model.config.to_dict())
        scorer = minireranker.Scorer(checkpoint, prepare, device, dtype, model)
        embedder = qwen3_vl.Embedder(checkpoint, qwen3_vl.Prepare(), device, dtype, model)
    rows, columns = scorer.grid(*side)
    half = KeptTokens(torch.arange(0, rows * columns, 2, dtype=torch.int32), (rows, columns))
    found: dict[str, object] = {"model": name, "device": _device(device), "tokens": rows * columns, "batch": n}
    for what, work in (
        ("embed", lambda some: embedder.embed_pages(some)),
        ("precache", lambda some: scorer.prepare(some, [half] * len(some))),
    ):
        for how, most in (("batched", None), ("one_by_one", 0)):
            for backbone in (scorer.backbone, embedder.backbone):
                backbone.most_tokens = 0
                if most is None:
                    backbone.limit_memory(Machine().memory)
            per_second, peak = _rate(work, images, device)
            found[f"{what}_{how}_pages_per_second"] = round(per_second, 3)
            found[f"{what}_{how}_peak_bytes"] = peak
    return found


def _rate(
    work: Callable[[list[Image.Image]], object], images: list[Image.Image], device: torch.device
) -> tuple[float, int]:
    work(images)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(_BATCHES):
        work(images)  # its results are on the CPU, so that the device has ended
    seconds = time.perf_counter() - started
    return _BATCHES * len(images) / seconds, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def table(folder: Path) -> str:
    """The rows that BENCHMARKS.md has; a step that did not end has a line that says so."""
    ended = dict(line.split() for line in (folder / "steps.txt").read_text("utf-8").splitlines())
    lines = ["| shape | what | candidates | ms a query | peak GB |", "|---|---|---|---|---|"]
    for step in _BENCHES:
        for row in _read(folder, step).get("rows", []):
            peak = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else ""
            lines.append(f"| {step[6:]} | {row['what']} | {row['candidates']} | {row['ms']:.2f} | {peak} |")
    lines += ["", "| shape | what | pages a second, batched | one by one | peak GB, batched |", "|---|---|---|---|---|"]
    for step in _PAGES:
        found = _read(folder, step)
        for what in ("embed", "precache") if found else ():
            batched, alone = (found[f"{what}_{how}_pages_per_second"] for how in ("batched", "one_by_one"))
            peak = found[f"{what}_batched_peak_bytes"] / 1e9
            lines.append(f"| {step[6:]} | {what} | {batched} | {alone} | {peak:.1f} |")
    lines += ["", "| step | result |", "|---|---|"]
    results = {"0": "done", "124": "not measured: over its time limit", "skipped": "skipped: no CUDA device"}
    lines += [f"| {step} | {results.get(code, f'failed with status {code}')} |" for step, code in ended.items()]
    return "\n".join(lines) + "\n"


# Any: JSON of another program.
def _read(folder: Path, step: str) -> dict:  # type: ignore[type-arg]
    try:
        found: dict = json.loads((folder / f"{step}.json").read_text("utf-8"))  # type: ignore[type-arg]
    except (OSError, ValueError):
        return {}
    return found


if __name__ == "__main__":
    if sys.argv[1] == "pages":
        print(json.dumps(pages(*sys.argv[2:4])))
    else:
        print(table(Path(sys.argv[2])), end="")
