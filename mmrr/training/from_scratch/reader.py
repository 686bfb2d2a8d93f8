"""Teaches the vision tower to read: the characters and words in every cell of a page.

Dense supervision: a cell is one visual token (32 x 32 pixels). Its targets are the letters and digits whose centres lie
in it, and the hashed n-grams of the words that touch it. With a loss on the answer alone such a tower learns nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from mmrr.backbones.qwen3_vl import linear_patches
from mmrr.documents.page_grid import CELL_PX
from mmrr.training.data.cell_targets import ALPHABET, N_HASHES, CellTargets
from mmrr.training.loop import Losses
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.snippets import draw_snippet

#: Reports that the first batches are drawn from, and steps until one more report is added.
FIRST_REPORTS, STEPS_PER_REPORT = 100, 6


@dataclass(frozen=True, slots=True)
class Crops:
    """A batch: crops of one size."""

    pixels: Tensor  # (B * patches, 1536), in the image processor's order
    grid: Tensor  # (B, 3)
    characters: Tensor  # (B * cells, 36) bool
    hashes: Tensor  # (B * cells, N_HASHES) bool


class CropMaker:
    """Maps a step number to Crops, cut from the pages of a pool."""

    def __init__(
        self,
        pool: PagePool,
        reports: int,
        seed: int,
        sizes: tuple[tuple[int, int, int], ...],
        pages: int = 4,
        letters: int = 0,
    ) -> None:
        """``sizes``: (columns, rows, crops a batch) in cells; each batch uses one. ``reports``: at most, of the pool.

        The first ``letters`` steps, and a fifth of the later steps, use plain snippets. ``pages``: pages a batch.
        """
        self.pool, self.reports, self.seed, self.sizes, self.pages = pool, reports, seed, sizes, pages
        self.letters = letters
        self.vocabulary = sorted(
            {word for document in pool.documents for block in document.blocks for word in block.text.split()}
        )

    def __call__(self, step: int) -> Crops:
        rng = random.Random(f"{self.seed}/crops/{step}")
        if step < self.letters or rng.random() < 0.2 * bool(self.letters):
            return self._snippets(rng)
        columns, rows, n = rng.choice(self.sizes)
        images: list[np.ndarray] = []
        characters, hashes = [], []
        per_page = max(1, n // self.pages)
        while len(images) < n:
            # Reports are added slowly: drawing one takes longer than several steps.
            report = rng.randrange(min(self.reports, FIRST_REPORTS + step // STEPS_PER_REPORT))
            drawn = self.pool.page(report, rng.randrange(self.pool.page_count(report)))
            targets = CellTargets(drawn.words)
            for _ in range(min(per_page, n - len(images))):
                image, left, top, cell_px = _cut(drawn, columns, rows, rng)
                images.append(image)
                found = targets.crop(left, top, columns, rows, cell_px)
                characters.append(found[0])
                hashes.append(found[1])
        return _batch(images, columns, rows, characters, hashes)

    def _snippets(self, rng: random.Random) -> Crops:
        """Small crops of plain text. The tower learns the first letters many times faster on them than on pages."""
        columns, rows, n = 8, 4, 32
        images, characters, hashes = [], [], []
        for _ in range(n):
            drawn = draw_snippet(self.vocabulary, columns * CELL_PX, rows * CELL_PX, rng)
            found = CellTargets(drawn.words).crop(0, 0, columns, rows, CELL_PX)
            images.append(np.asarray(drawn.image))
            characters.append(found[0])
            hashes.append(found[1])
        return _batch(images, columns, rows, characters, hashes)


def _batch(
    images: list[np.ndarray], columns: int, rows: int, characters: list[np.ndarray], hashes: list[np.ndarray]
) -> Crops:
    return Crops(
        patchify(np.stack(images)),
        torch.tensor([[1, rows * 2, columns * 2]] * len(images)),
        torch.from_numpy(np.concatenate(characters)),
        torch.from_numpy(np.concatenate(hashes)),
    )


def _cut(drawn: DrawnPage, columns: int, rows: int, rng: random.Random) -> tuple[np.ndarray, int, int, float]:
    """A crop near a random word, scaled by 0.75 to 1.3, (H, W, 3) uint8; its left, top and cell side in page pixels."""
    scale = 1.0 if rng.random() < 0.5 else rng.uniform(0.75, 1.3)
    width, height = columns * CELL_PX * scale, rows * CELL_PX * scale
    if drawn.words and rng.random() < 0.9:
        x, y = rng.choice(drawn.words).centres[0]
        left, top = float(x) - rng.random() * width, float(y) - rng.random() * height
    else:
        left, top = rng.random() * (drawn.image.width - width), rng.random() * (drawn.image.height - height)
    left = round(min(max(left, -16), max(0.0, drawn.image.width - width + 16)))
    top = round(min(max(top, -16), max(0.0, drawn.image.height - height + 16)))
    box = (left, top, left + round(width), top + round(height))
    crop = drawn.image.crop(box)  # outside the page it is black, like the edge of a scan
    if scale != 1.0:
        crop = crop.resize((columns * CELL_PX, rows * CELL_PX), Image.Resampling.BICUBIC)
    if rng.random() < 0.1:
        crop = ImageOps.invert(crop)
    return np.asarray(crop), left, top, round(width) / columns


def patchify(images: np.ndarray, patch: int = 16, merge: int = 2) -> Tensor:
    """(B, H, W, 3) uint8 -> patches (B * n, 3 * 2 * 16 * 16) in the order of the published image processor."""
    x = torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    b, c, h, w = x.shape
    side = patch * merge
    x = x.view(b, c, h // side, merge, patch, w // side, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B, rows, columns, merge y, merge x, C, y, x
    x = x.unsqueeze(6).expand(*x.shape[:6], 2, patch, patch)  # the tower takes two frames: the same image twice
    return x.reshape(b * (h // patch) * (w // patch), c * 2 * patch * patch)


class Reader(nn.Module):
    """The vision tower with the heads that train it."""

    def __init__(self, tower: Any, hidden: int, hash_weight: float = 0.1) -> None:
        """``tower``: the vision model of transformers' Qwen3-VL. ``hidden``: numbers in a visual token."""
        super().__init__()
        self.hash_weight = hash_weight
        self.tower = faster(tower)
        self.characters = nn.Linear(hidden, len(ALPHABET))
        self.hashes = nn.Linear(hidden, N_HASHES)
        self.early = nn.Linear(hidden, len(ALPHABET))
        nn.init.constant_(self.characters.bias, -2.5)
        nn.init.constant_(self.early.bias, -2.5)
        nn.init.constant_(self.hashes.bias, -5.0)

    def freeze_heads(self) -> None:
        """Train the tower only, so that its features keep their meaning for models that were trained on them."""
        for head in (self.characters, self.hashes, self.early):
            head.requires_grad_(False)

    def forward(self, pixels: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of characters and hashes a cell, and of characters from the early (DeepStack) features or None."""
        out = self.tower(pixels, grid_thw=grid)
        early = self.early(out.deepstack_features[0]) if out.deepstack_features else None
        return self.characters(out.pooler_output), self.hashes(out.pooler_output), early

    def losses(self, batch: Crops) -> Losses:
        """Binary cross-entropy, summed over classes and averaged over cells."""
        characters, hashes, early = self(batch.pixels, batch.grid)
        target = batch.characters.float()
        by_character = F.binary_cross_entropy_with_logits(characters.float(), target) * len(ALPHABET)
        by_hash = F.binary_cross_entropy_with_logits(hashes.float(), batch.hashes.float()) * N_HASHES
        total = by_character + self.hash_weight * by_hash
        if early is not None:
            total = total + 0.3 * F.binary_cross_entropy_with_logits(early.float(), target) * len(ALPHABET)
        return {"loss": total, "characters": by_character, "hashes": by_hash}

    def scores(self, batches: list[Crops]) -> dict[str, float]:
        """F1 of characters and of word hashes over all cells, at a threshold of 1/2."""
        counts = np.zeros((2, 3))
        for batch in batches:
            characters, hashes, _ = self(batch.pixels, batch.grid)
            for row, (logits, target) in enumerate(((characters, batch.characters), (hashes, batch.hashes))):
                predicted = logits > 0
                counts[row] += (int((predicted & target).sum()), int(predicted.sum()), int(target.sum()))
        f1 = [2 * hit / max(1.0, predicted + true) for hit, predicted, true in counts]
        return {"f1_characters": f1[0], "f1_hashes": f1[1]}


def faster(tower: Any) -> Any:
    """The tower with the same arithmetic in forms that train several times faster on a CPU.

    Crops of one size attend in one batch instead of a loop. Over 256 patches or fewer, attention is two plain matrix
    products: their gradient is cheaper than that of the fused kernel.
    """
    linear_patches(tower)
    for block in tower.blocks:
        block.attn.forward = partial(_attend, block.attn)
    return tower


def _attend(
    attention: Any, x: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: object
) -> Tensor:
    crops = len(cu_seqlens) - 1
    patches = x.shape[0] // crops
    query, key, value = attention.qkv(x).view(crops, patches, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    cos, sin = (part.view(crops, 1, patches, -1).to(x.dtype) for part in position_embeddings)
    query, key = (_turn(part, cos, sin) for part in (query, key))
    if patches <= 256:
        weights = torch.softmax(query @ key.transpose(-1, -2) * attention.scaling, dim=-1)
        out = weights.to(value.dtype) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    projected: Tensor = attention.proj(out.transpose(1, 2).reshape(x.shape[0], -1))
    return projected


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
