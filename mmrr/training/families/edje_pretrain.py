"""Pre-training of a Local EDJE, whose vision tokens are a page's cells: the pointing loss and the first vectors."""

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
from mmrr.training.pointing import half_of_heads, pointing_loss

#: Text -> ids of ``[CLS] text [SEP]``.
Ids = Callable[[str], list[int]]
#: Row of a word's last piece -> the folded word.
Ends = dict[int, str]
#: Folded word of a page -> its cells.
Cells = dict[str, tuple[int, ...]]

#: The joint encoder's layer with the pointing loss.
POINTING_LAYER = 1
#: Letters of the shortest word with a pointing loss: shorter words are on every page.
MIN_LETTERS = 3
#: Words of a page, and of the batch's other page, in one text of the pre-training.
OWN, OTHERS = 20, 6
#: Pages that the first letter vectors are averaged over.
FIRST_PAGES = 400
#: Share of the mean variance that is added to each variance before whitening.
SHRINK = 0.1


def ends_of(ids: Ids, words: Sequence[str]) -> Ends:
    """The rows of the words' last pieces in the text of ``words``, with the folded words.

    Words that are cut off or shorter than MIN_LETTERS are left out.
    """
    text = ids(" ".join(words))
    ends: Ends = {}
    pieces: list[int] = []
    for word in words:
        pieces += ids(word)[1:-1]
        if pieces and len(pieces) <= len(text) - 2 and len(fold(word)) >= MIN_LETTERS:
            ends[len(pieces)] = fold(word)
    # If the text's pieces are not those of its words, the rows are wrong.
    return ends if pieces[: len(text) - 2] == text[1:-1] else {}


class Pointing:
    """The pointing loss: half of the heads of one layer attend from the last piece of each word to the word's cells.

    The target is ``[CLS]`` if the page lacks the word.
    """

    def __init__(
        self,
        encoder: backbone.JointEncoder,
        cells: Sequence[Cells],
        texts: Sequence[Sequence[int]],
        ends: Sequence[Ends],
    ) -> None:
        """``cells``: of each page; ``texts``: ids of each text; ``ends``: of each text."""
        self.encoder, self.cells, self.texts, self.ends = encoder, cells, texts, ends
        self.losses: list[Tensor] = []

    def watch(self, number: int, pages: Sequence[int], index: int, x: Tensor) -> None:
        """Add the loss of text ``number`` and ``pages``; ``x`` (P, n, d) is the input of layer ``index``."""
        ends, before = self.ends[number], len(self.texts[number])
        if index != POINTING_LAYER or not ends:
            return
        target = torch.zeros(len(pages), len(ends), x.shape[1], dtype=torch.bool)
        for at, page in enumerate(pages):
            for row, word in enumerate(ends.values()):
                cells = self.cells[page].get(word)
                target[at, row, [before + cell for cell in cells] if cells else [0]] = True
        target = target.to(x.device)[:, None]
        heads = half_of_heads(self.encoder.heads)
        query = self.encoder.heads_of(index, "query", x[:, list(ends)])[:, :heads].float()
        key = self.encoder.heads_of(index, "key", x)[:, :heads].float()
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (P, h, W, n)
        self.losses.append(pointing_loss(logits, target).mean((1, 2)))

    def loss(self) -> Tensor:
        """The mean over texts and pages; 0 if no text has a long enough word."""
        return torch.cat(self.losses).mean() if self.losses else torch.zeros(())


def cells_of(page: ReadPage) -> Cells:
    """The cells of each folded word of a page, over all its occurrences."""
    found: dict[str, set[int]] = {}
    for word, cells in zip(page.folded, page.cells, strict=True):
        found.setdefault(word, set()).update(cells)
    return {word: tuple(sorted(cells)) for word, cells in found.items() if cells}


@dataclass(frozen=True, slots=True)
class Words:
    """A page and words, some of them from this page."""

    page: Tensor  # (T, D)
    cells: Cells
    words: tuple[str, ...]


class WordBatches:
    """Maps a step number to two pages, each with words of its own and words of the other, shuffled."""

    def __init__(self, features: TowerFeatures, keys: list[tuple[int, int]], seed: int) -> None:
        self.features, self.keys, self.seed = features, keys, seed

    def __call__(self, step: int) -> list[Words]:
        rng = random.Random(f"{self.seed}/spelling/{step}")  # a part of the seed: another text draws other batches
        pages = [self.features.load(*rng.choice(self.keys)) for _ in range(2)]
        made = []
        for page, other in zip(pages, reversed(pages), strict=True):
            words = [*_sample(page, OWN, rng), *_sample(other, OTHERS, rng)]
            rng.shuffle(words)
            made.append(Words(page.tokens, cells_of(page), tuple(words)))
        return made


def _sample(page: ReadPage, n: int, rng: random.Random) -> list[str]:
    words = sorted({word for word in page.words if len(fold(word)) >= MIN_LETTERS})
    return rng.sample(words, min(n, len(words)))


class Pretraining(nn.Module):
    """Trains a Local network with the pointing loss alone: the layers below it, and its queries and keys."""

    def __init__(self, network: Network, ids: Ids, sep: int) -> None:
        super().__init__()
        self.network, self.ids, self.sep = network, ids, sep

    def losses(self, batch: Sequence[Words]) -> Losses:
        """The pointing loss of each page's text on that page."""
        adapter, encoder = self.network.parts()
        texts = [self.ids(" ".join(one.words)) for one in batch]
        self.network.check([one.page for one in batch], texts)
        ends = [ends_of(self.ids, one.words) for one in batch]
        pointing = Pointing(encoder, [one.cells for one in batch], texts, ends)
        for number, one in enumerate(batch):
            z = adapter(one.page[None].float())[0].float()
            x = encoder.embed(texts[number], self.sep, z[None])
            for index in range(POINTING_LAYER):
                x = encoder.layer(index, x, x)
            pointing.watch(number, [number], POINTING_LAYER, x)
        return {"loss": pointing.loss()}


def init_letters(network: Network, pieces: Sequence[str], ids: Ids, pages: Iterable[ReadPage]) -> None:
    """Give a random Local network letter vectors that are similar to the cells that show the letters.

    The projection passes the whitened vision tokens on unchanged (x = gelu(x) - gelu(-x)). A letter vector starts as
    the mean of the cells that show words with the letter on ``pages``. The first two layers' keys have the same
    projection as their queries, so that similar states attend to each other. If the widths of vision encoder and joint
    encoder differ, or the projection is too narrow, everything stays random.
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
        for layer in joint.encoder.layer[: POINTING_LAYER + 1]:
            attention = layer.attention.self
            nn.init.orthogonal_(attention.query.weight)
            attention.key.weight.copy_(attention.query.weight)
        joint.embeddings.word_embeddings.weight[network.letters.numbers] = 0
