"""Teaches a fresh EDJE of kind Local, whose vision tokens are a page's cells, where words stand: pointing, spelling."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrr.backbones import edje as backbone
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.tower_features import ReadPage, TowerFeatures
from mmrr.training.families.edje_init import N_GRAMS, Letters, Network, grams
from mmrr.training.loop import Losses

#: Ids of ``[CLS] text [SEP]``.
Ids = Callable[[str], list[int]]
#: Folded words of a text by the row of their last piece.
Ends = dict[int, str]
#: The cells of each folded word of a page.
Cells = dict[str, tuple[int, ...]]

#: The joint encoder's layer that points.
POINTER = 1
#: Shortest word that is taught to point: shorter ones stand on every page.
LEAST = 3
#: Words of a page, and of another one, that are spelled at once.
OWN, OTHERS = 20, 6
#: Of a fresh network: pages that its letters are first seen on; of the mean variance, what is added to each before
#: whitening.
FIRST_PAGES, SHRINK = 400, 0.1


def ends_of(ids: Ids, words: Sequence[str]) -> Ends:
    """Of a text of these words: by the row of a word's last piece the word, folded."""
    text = ids(" ".join(words))
    ends: Ends = {}
    pieces: list[int] = []
    for word in words:
        pieces += ids(word)[1:-1]
        if pieces and len(pieces) <= len(text) - 2 and len(fold(word)) >= LEAST:
            ends[len(pieces)] = fold(word)
    # Where the pieces of a text are not those of its words, places mean nothing.
    return ends if pieces[: len(text) - 2] == text[1:-1] else {}


class Pointer:
    """Where half of the heads of one layer look from the last piece of each word; to ``[CLS]`` if the page lacks it."""

    def __init__(
        self,
        encoder: backbone.JointEncoder,
        cells: Sequence[Cells],
        texts: Sequence[Sequence[int]],
        ends: Sequence[Ends],
    ) -> None:
        """``cells``: of each page's words; ``ends``: of each of ``texts``, its words by their rows."""
        self.encoder, self.cells, self.texts, self.ends = encoder, cells, texts, ends
        self.losses: list[Tensor] = []

    def watch(self, number: int, pages: Sequence[int], index: int, x: Tensor) -> None:
        """``x`` (P, n, d) of text ``number`` and of ``pages``, as it enters layer ``index``."""
        ends, before = self.ends[number], len(self.texts[number])
        if index != POINTER or not ends:
            return
        target = torch.zeros(len(pages), len(ends), x.shape[1], dtype=torch.bool)
        for at, page in enumerate(pages):
            for row, word in enumerate(ends.values()):
                cells = self.cells[page].get(word)
                target[at, row, [before + cell for cell in cells] if cells else [0]] = True
        target = target.to(x.device)[:, None]
        heads = max(1, self.encoder.heads // 2)
        query = self.encoder.heads_of(index, "query", x[:, list(ends)])[:, :heads].float()
        key = self.encoder.heads_of(index, "key", x)[:, :heads].float()
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (P, h, W, n)
        self.losses.append((logits.logsumexp(-1) - logits.masked_fill(~target, -torch.inf).logsumexp(-1)).mean((1, 2)))

    def loss(self) -> Tensor:
        """-log of the attention that goes where it must; the mean over texts and pages."""
        return torch.cat(self.losses).mean() if self.losses else torch.zeros(())


def cells_of(page: ReadPage) -> Cells:
    """The cells of each folded word of a page, wherever it stands."""
    found: dict[str, set[int]] = {}
    for word, cells in zip(page.folded, page.cells, strict=True):
        found.setdefault(word, set()).update(cells)
    return {word: tuple(sorted(cells)) for word, cells in found.items() if cells}


@dataclass(frozen=True, slots=True)
class Words:
    """A page, and words some of which stand on it."""

    page: Tensor  # (T, D)
    cells: Cells
    words: tuple[str, ...]


class Spelled:
    """Step number -> pages with some of their words and some of another page's, in any order."""

    def __init__(self, features: TowerFeatures, keys: list[tuple[int, int]], seed: int) -> None:
        self.features, self.keys, self.seed = features, keys, seed

    def __call__(self, step: int) -> list[Words]:
        rng = random.Random(f"{self.seed}/spelling/{step}")
        pages = [self.features.load(*rng.choice(self.keys)) for _ in range(2)]
        made = []
        for page, other in zip(pages, reversed(pages), strict=True):
            words = [*_sample(page, OWN, rng), *_sample(other, OTHERS, rng)]
            rng.shuffle(words)
            made.append(Words(page.tokens, cells_of(page), tuple(words)))
        return made


def _sample(page: ReadPage, n: int, rng: random.Random) -> list[str]:
    words = sorted({word for word in page.words if len(fold(word)) >= LEAST})
    return rng.sample(words, min(n, len(words)))


class Spelling(nn.Module):
    """Teaches the beginning of a fresh Local network to point: what comes before the layer that does, and its keys."""

    def __init__(self, network: Network, ids: Ids, sep: int) -> None:
        super().__init__()
        self.network, self.ids, self.sep = network, ids, sep

    def losses(self, batch: Sequence[Words]) -> Losses:
        adapter, encoder = self.network.parts()
        texts = [self.ids(" ".join(one.words)) for one in batch]
        self.network.check([one.page for one in batch], texts)
        ends = [ends_of(self.ids, one.words) for one in batch]
        pointer = Pointer(encoder, [one.cells for one in batch], texts, ends)
        for number, one in enumerate(batch):
            z = adapter(one.page[None].float())[0].float()
            x = encoder.embed(texts[number], self.sep, z[None])
            for index in range(POINTER):
                x = encoder.layer(index, x, x)
            pointer.watch(number, [number], POINTER, x)
        return {"loss": pointer.loss()}


def acquaint(network: Network, pieces: Sequence[str], ids: Ids, pages: Iterable[ReadPage]) -> None:
    """Give a fresh Local network letters, which look like the cells they stand in.

    Vision tokens, whitened, go through the projection as they are (x = gelu(x) - gelu(-x)); letters begin as the mean
    of the cells in which words with them stood on ``pages``; and the first two layers' keys are projected as their
    queries, so that like attends to like. Where the widths of vision encoder and joint encoder differ, or the
    projection is too narrow for it, all is left at random.
    """
    sizes, n = network.sizes, network.sizes.hidden
    table = torch.randn(N_GRAMS, n)
    if sizes.vision_width != n or sizes.adapter_mlp < 2 * n:
        network.letters = Letters(pieces, table)
        return
    counts = torch.zeros(N_GRAMS)
    sums = torch.zeros(N_GRAMS, n)
    some = []
    for page in pages:
        tokens = page.tokens.float()
        some.append(tokens)
        for word, cells in zip(page.words, page.cells, strict=True):
            letters = [letter for number in ids(word)[1:-1] for letter in grams(pieces[number])]
            if letters and cells:
                sums[letters] += tokens[list(cells)].mean(0)
                counts[letters] += 1
    seen = counts > 0
    every = torch.cat(some)
    mean = every.mean(0)
    size, axes = torch.linalg.eigh(torch.cov(every.T))
    white = axes @ torch.diag((size + SHRINK * size.mean()).rsqrt()) @ axes.T
    table[seen] = F.layer_norm((sums[seen] / counts[seen, None] - mean) @ white, (n,))
    network.letters = Letters(pieces, table)
    projection: Any = network.vision_projection
    with torch.no_grad():
        first, _, second = projection
        first.weight.normal_(std=0.02)
        first.bias.zero_()
        first.weight[: 2 * n] = torch.cat([white, -white])
        first.bias[: 2 * n] = torch.cat([-white @ mean, white @ mean])
        second.weight.zero_()
        second.bias.zero_()
        second.weight[:, : 2 * n] = torch.cat([torch.eye(n), -torch.eye(n)], dim=1)
        joint: Any = network.language_model.bert
        for layer in joint.encoder.layer[: POINTER + 1]:
            attention = layer.attention.self
            nn.init.orthogonal_(attention.query.weight)
            attention.key.weight.copy_(attention.query.weight)
        joint.embeddings.word_embeddings.weight[network.letters.numbers] = 0
