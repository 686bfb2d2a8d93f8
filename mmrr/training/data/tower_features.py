"""Tower features: the output of a frozen vision tower for pages of a pool, on disk. Language models train on it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from mmrr.backbones.qwen3_vl import Backbone, Visual
from mmrr.documents.page_grid import CELL_PX
from mmrr.training.data.cell_targets import fold
from mmrr.training.loop import mixed
from mmrr.training.synthetic.page_pool import LocatedQuestion, PagePool
from mmrr.types import Embedding
from mmrr.workspace.tensor_files import save_tensors

#: (report, page) numbers of a page.
Key = tuple[int, int]
#: Keys of pages in order.
Keys = list[Key]


class VisionTower(Protocol):
    """Turns page images into vision tokens."""

    def vision(self, images: Sequence[Image.Image]) -> list[Visual]: ...


class PageEmbedder(Protocol):
    """The part of an embedder that turns vision tokens into the vectors of a page."""

    backbone: Backbone

    def read(self, visual: Visual) -> Embedding: ...


@dataclass(frozen=True, slots=True)
class ReadPage:
    """One page as the input of a language model in training: vision tokens, words and questions."""

    tokens: Tensor  # (T, D): T cells in raster order
    deepstack: Tensor  # (S, T, D): S DeepStack levels
    grid: tuple[int, int]  # rows, columns of cells
    saliency: Tensor | None  # (T,): an embedder's attention to the cells
    words: tuple[str, ...]  # as written, in reading order
    folded: tuple[str, ...]
    blocks: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]  # of each word, as raster indices
    questions: tuple[LocatedQuestion, ...]  # those answered on this page

    def visual(self, backbone: Backbone) -> Visual:
        """The features as input of a language model: in its dtype, its width and its DeepStack levels."""
        weight = backbone.text.embed_tokens.weight
        wider = (0, weight.shape[1] - self.tokens.shape[1])  # a wider model's tower was padded with zeros too
        levels = self.deepstack[: len(backbone.config.vision_config.deepstack_visual_indexes)]
        return Visual(F.pad(self.tokens.to(weight), wider), F.pad(levels.to(weight), wider), self.grid)

    def part(self, rows: int, rng: random.Random) -> ReadPage:
        """A strip of ``rows`` rows of cells at a random place; the whole page if it has no more rows."""
        rows = min(rows, self.grid[0])
        return self.strip(rng.randint(0, self.grid[0] - rows), rows)

    def strip(self, top: int, rows: int) -> ReadPage:
        """A strip as a page: its cells, the words that are completely in them, and no questions."""
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


class TowerFeatures:
    """Features by (report, page). They are computed once and survive a restart."""

    def __init__(self, folder: Path, pool: PagePool, embedder: str = "") -> None:
        """``embedder``: name of the embedder whose vectors are stored with the features; empty: none."""
        self.folder, self.pool, self.embedder = folder, pool, embedder
        self._words: dict[Key, dict[str, Any]] = {}  # parsing takes as long as a training step of a small model
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, report: int, page: int) -> Path:
        """The file of a page's features."""
        return self.folder / f"{report:06d}-{page}.safetensors"

    def make(self, backbone: VisionTower, report: int, number: int) -> None:
        """Run the vision tower over one page, unless its features exist."""
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

    def embed(self, embedder: PageEmbedder, report: int, number: int) -> None:
        """Store an embedder's vectors (V, D) of one page and its attention (T,) to the cells, unless they exist."""
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
        """One page; with ``saliency`` if an embedder is named."""
        page = self._page(report, number)
        if not self.embedder:
            return page
        return replace(page, saliency=load_file(self._embedding_path(report, number))["saliency"])

    def _page(self, report: int, number: int) -> ReadPage:
        tensors = load_file(self.path(report, number))
        rows, columns = tensors["grid"].tolist()
        key = (report, number)
        if key not in self._words:
            self._words[key] = self._page_words(report, number, rows, columns)
        return ReadPage(tensors["tokens"], tensors["deepstack"], (rows, columns), None, **self._words[key])

    def _page_words(self, report: int, number: int, rows: int, columns: int) -> dict[str, Any]:
        """The fields of a ReadPage that are not tensors or the grid."""
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
            "questions": tuple(question for question in self.pool.questions(report) if number in question.pages),
        }


def make_all(
    features: TowerFeatures, reports: int, tower: Callable[[], VisionTower], device: torch.device
) -> Generator[dict[str, Any], None, Keys]:
    """Compute the missing features of the first ``reports`` reports.

    Yields one log record a report and returns the keys of all pages. ``tower``: loads the vision tower onto
    ``device``; it is called at most once, for the first missing page.
    """
    keys: Keys = []
    backbone: VisionTower | None = None
    for report in range(reports):
        of_report = [(report, number) for number in range(features.pool.page_count(report))]
        for key in of_report:
            if not features.path(*key).exists():
                backbone = backbone or tower()
                with mixed(device, torch.bfloat16):  # the precision in which mmrr trains its towers
                    features.make(backbone, *key)
        keys += of_report
        yield {"stage": "features", "step": report + 1, "steps": reports, "lr": 0.0}
    return keys


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    save_tensors(tensors, scratch)
    os.replace(scratch, path)
