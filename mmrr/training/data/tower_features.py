"""What a frozen vision tower makes of the pool's pages, kept on disk: the language models are trained on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mmrr.backbones.qwen3_vl import Visual
from mmrr.documents.page_grid import CELL_PX
from mmrr.training.data.cell_targets import fold
from mmrr.training.loop import mixed
from mmrr.training.synthetic.page_pool import Asked, Pool
from mmrr.workspace.files import save_tensors

#: (report, page) of a page.
Key = tuple[int, int]
#: Of pages, in order.
Keys = list[Key]


@dataclass(frozen=True, slots=True)
class ReadPage:
    """One page as a language model in training sees it."""

    tokens: Tensor  # (T, D)
    deepstack: Tensor  # (S, T, D)
    grid: tuple[int, int]
    saliency: Tensor | None  # (T,)
    words: tuple[str, ...]  # as written, in reading order
    folded: tuple[str, ...]
    blocks: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]  # of each word, raster indices
    questions: tuple[Asked, ...]  # those answered on this page

    def visual(self, backbone: Any) -> Visual:
        """These features as this language model takes them."""
        weight = backbone.text.embed_tokens.weight
        wider = (0, weight.shape[1] - self.tokens.shape[1])  # than the reader: with zeros, as its tower was widened
        levels = self.deepstack[: len(backbone.config.vision_config.deepstack_visual_indexes)]
        return Visual(F.pad(self.tokens.to(weight), wider), F.pad(levels.to(weight), wider), self.grid)

    def part(self, rows: int, rng: random.Random) -> ReadPage:
        """A strip of so many rows of cells, from anywhere; the whole page where it has no more."""
        rows = min(rows, self.grid[0])
        return self.strip(rng.randint(0, self.grid[0] - rows), rows)

    def strip(self, top: int, rows: int) -> ReadPage:
        """Some of its rows of cells as a page of their own: the words they hold, and no questions."""
        columns = self.grid[1]
        cells = range(top * columns, (top + rows) * columns)
        held = [i for i, of_word in enumerate(self.cells) if all(cell in cells for cell in of_word)]
        span = slice(cells.start, cells.stop)
        return ReadPage(
            tokens=self.tokens[span],
            deepstack=self.deepstack[:, span],
            grid=(rows, columns),
            saliency=None if self.saliency is None else self.saliency[span],
            words=tuple(self.words[i] for i in held),
            folded=tuple(self.folded[i] for i in held),
            blocks=tuple(self.blocks[i] for i in held),
            cells=tuple(tuple(cell - cells.start for cell in self.cells[i]) for i in held),
            questions=(),
        )


class Features:
    """Features by (report, page); made once and found again after a restart."""

    def __init__(self, folder: Path, pool: Pool, embedder: str = "") -> None:
        """``embedder``: a name for the one whose view of the pages is kept beside the features; empty: none."""
        self.folder, self.pool, self.embedder = folder, pool, embedder
        self._written: dict[tuple[int, int], dict[str, Any]] = {}  # parsing it costs as much as a small model's step
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, report: int, page: int) -> Path:
        return self.folder / f"{report:06d}-{page}.safetensors"

    def make(self, backbone: Any, report: int, number: int) -> None:
        """Run the vision tower over one page, unless that has been done."""
        path = self.path(report, number)
        if path.exists():
            return
        (visual,) = backbone.vision([self.pool.page(report, number).image])
        tensors = {
            "tokens": visual.tokens.to("cpu", torch.bfloat16).contiguous(),
            "deepstack": visual.deepstack.to("cpu", torch.bfloat16).contiguous(),
            "grid": torch.tensor(visual.grid),
        }
        _write(tensors, path)

    def embed(self, embedder: Any, report: int, number: int) -> None:
        """Keep an embedder's vectors (V, D) of one page and its attention (T,) to the cells, if not done."""
        path = self._embedding_path(report, number)
        if path.exists():
            return
        found = embedder.read(self._page(report, number).visual(embedder.backbone))
        _write({"saliency": found.saliency, "vectors": found.vectors}, path)

    def vectors(self, report: int, number: int) -> Tensor:
        """The embedder's vectors (V, D) of one page."""
        return load_file(self._embedding_path(report, number))["vectors"]

    def _embedding_path(self, report: int, number: int) -> Path:
        return self.folder / f"{report:06d}-{number}.{self.embedder}.vectors"

    def load(self, report: int, number: int) -> ReadPage:
        page = self._page(report, number)
        if not self.embedder:
            return page
        return replace(page, saliency=load_file(self._embedding_path(report, number))["saliency"])

    def _page(self, report: int, number: int) -> ReadPage:
        tensors = load_file(self.path(report, number))
        rows, columns = tensors["grid"].tolist()
        key = (report, number)
        if key not in self._written:
            self._written[key] = self._read(report, number, rows, columns)
        return ReadPage(tensors["tokens"], tensors["deepstack"], (rows, columns), None, **self._written[key])

    def _read(self, report: int, number: int, rows: int, columns: int) -> dict[str, Any]:
        """What a ReadPage holds beside its tensors."""
        words = self.pool.words(report, number)
        cells = []
        for word in words:
            x = (word.centres[:, 0] // CELL_PX).astype(int).clip(0, columns - 1)
            y = (word.centres[:, 1] // CELL_PX).astype(int).clip(0, rows - 1)
            cells.append(tuple(sorted({int(cell) for cell in y * columns + x})))
        return {
            "words": tuple(word.text for word in words),
            "folded": tuple(fold(word.text) for word in words),
            "blocks": tuple(word.block for word in words),
            "cells": tuple(cells),
            "questions": tuple(asked for asked in self.pool.questions(report) if number in asked.pages),
        }


def make_all(
    features: Features, reports: int, tower: Callable[[], Any], device: torch.device
) -> Generator[dict[str, Any], None, Keys]:
    """Make what is missing of the first ``reports`` reports; yields a record a report, returns (report, page) of all.

    ``tower``: loads what reads pages onto ``device``, called where a page has not been read yet.
    """
    keys: Keys = []
    backbone: Any = None
    for report in range(reports):
        of_report = [(report, number) for number in range(features.pool.pages(report))]
        for key in of_report:
            if not features.path(*key).exists():
                backbone = backbone or tower()
                with mixed(device, torch.bfloat16):  # as a tower of our own was trained
                    features.make(backbone, *key)
        keys += of_report
        yield {"stage": "features", "step": report + 1, "steps": reports, "lr": 0.0}
    return keys


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    save_tensors(tensors, scratch)
    os.replace(scratch, path)
