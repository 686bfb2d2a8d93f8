"""What a small ZipRerank is told beside the answer while it is trained: where to look, and what a state should say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr import random_checkpoint
from mmrr.backbones.qwen3_vl import Visual
from mmrr.training.data.queries import folded_ends
from mmrr.training.data.ranked_lists import ListSample, WordCell

#: Cells of a list that are asked where they look: so many that hold a word of the query, and so many that do not.
ASKED = 48
#: What cosines are multiplied with in the loss on likeness.
SHARP = 20.0


class Hints:
    """What a small model is told beside the answer, of some cells of the pages; published models need none.

    *Pointing*: in one layer half of the heads must look from a cell to the query's words that stand in it, or to the
    instruction where none does. *Gathering*: in the next layer half of the heads must look from the mark behind a page
    to all of its cells in which telling words of the query stand, or to the instruction. *Naming*: before the last
    layer, the states of the cells and of the mark must tell the page's letter. *Judging*: the mark's must also say yes
    or no, whether the page is relevant. *Likeness*, where tokens are dropped: of a page's cells those in which a
    telling word stands must be nearest to the query. *Choosing*: in the last layer half of the heads must look from the
    bracket to a relevant page or its mark.
    """

    def __init__(self, backbone: Any, shown: ListSample, pointer: int, letters: Sequence[int]) -> None:
        """``pointer``: the layer that points."""
        self.backbone, self.shown, self.pointer = backbone, shown, pointer
        self.letters = list(letters[: len(shown.pages)])
        self.answers = [backbone.chat.token_id(word) for word in random_checkpoint.WORDS]
        self.pointed = self.gathered = self.chosen = self.named = self.judged = torch.zeros((), device=backbone.device)
        self.alike = self.judged

    def like(self, near: Sequence[Tensor]) -> None:
        """``near`` (T,) of each page: its tokens' nearness to the query, by which they are kept."""
        cells: dict[tuple[int, str], list[int]] = {}
        for one in self.shown.word_cells:
            for word in self.shown.rare_words.intersection(one.words):
                cells.setdefault((one.page, word), []).append(one.cell)
        logits = [SHARP * one for one in near]
        losses = [logits[page].logsumexp(0) - logits[page][held].logsumexp(0) for (page, _), held in cells.items()]
        if losses:
            self.alike = torch.stack(losses).mean()

    def place(
        self, sequence: Any, visuals: Sequence[Visual], kept: Sequence[Tensor | None], before: int, bracket: int
    ) -> None:
        """Find cells and words in the prompt.

        ``kept``: of each page the cells whose tokens are in it, None: all; ``before``: tokens up to the query;
        ``bracket``: the last one's place.
        """
        first = [0]
        for visual in visuals:
            first.append(first[-1] + len(visual.tokens))
        places = []
        for start, visual, of in zip(first, visuals, kept, strict=False):
            cells_of = range(len(visual.tokens)) if of is None else of.tolist()
            places.append({cell: start + i for i, cell in enumerate(cells_of)})
        holding = [one for one in self.shown.word_cells if one.cell in places[one.page]]
        full = {(one.page, one.cell) for one in holding}
        empty = [WordCell(page, cell, ()) for page, of in enumerate(places) for cell in of if (page, cell) not in full]
        self.asked = cells = [*_spread(holding, ASKED), *_spread(empty, ASKED)]
        self.rows = sequence.visual[[places[one.page][one.cell] for one in cells]]
        self.marks = sequence.visual[[last - 1 for last in first[1:]]] + 1
        pages = [*(one.page for one in cells), *range(len(visuals))]
        self.pages = torch.tensor(pages, device=self.rows.device)
        ends: dict[str, list[int]] = {}
        for word, end in folded_ends(self.shown.query):
            ends.setdefault(word, []).append(before + 1 + end)  # behind the blank that the segment begins with
        targets = torch.zeros(len(cells), len(sequence.embeddings), dtype=torch.bool)
        for row, one in enumerate(cells):
            found = [place for word in one.words for place in ends.get(word, ())]
            targets[row, found or slice(0, before)] = True
        self.targets = targets.to(self.rows.device)
        gathered = torch.zeros(len(visuals), len(sequence.embeddings), dtype=torch.bool)
        for one in holding:
            if self.shown.rare_words.intersection(one.words):
                gathered[one.page, sequence.visual[places[one.page][one.cell]]] = True
        gathered[:, :before] = ~gathered.any(1, keepdim=True)
        self.holding = gathered.to(self.rows.device)
        self.bracket = torch.tensor([bracket], device=self.rows.device)
        self.right = torch.zeros(1, targets.shape[1], dtype=torch.bool, device=self.rows.device)
        for page in self.shown.relevant:
            self.right[0, sequence.visual[first[page] : first[page + 1]]] = True
            self.right[0, self.marks[page]] = True

    def point(self, layer: int, query: Tensor, key: Tensor) -> None:
        if layer == self.pointer and len(self.rows):
            self.pointed = _elsewhere(query, key, self.rows, self.targets)
        if layer == self.pointer + 1:
            self.gathered = _elsewhere(query, key, self.marks, self.holding)
        if layer == self.backbone.n_layers - 1 and self.shown.relevant:
            self.chosen = _elsewhere(query, key, self.bracket, self.right)

    def name(self, layer: int, x: Tensor) -> None:
        if layer != self.backbone.n_layers - 2:
            return
        states = self.backbone.text.norm(x[torch.cat([self.rows, self.marks])].float()).float()
        self.named = F.cross_entropy(states @ self.backbone.head_rows(self.letters).T, self.pages)
        yes, no = self.backbone.head_rows(self.answers)
        relevant = torch.zeros(len(self.marks), device=x.device)
        relevant[list(self.shown.relevant)] = 1.0
        self.judged = F.binary_cross_entropy_with_logits(states[len(self.rows) :] @ (yes - no), relevant)


def _spread(cells: Sequence[WordCell], n: int) -> list[WordCell]:
    """``n`` of them or fewer, from everywhere."""
    return list(cells[:: max(1, math.ceil(len(cells) / n))])


def _elsewhere(query: Tensor, key: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """-log of the attention that half of the heads give to ``targets`` (R, n) from ``rows`` (R,); the mean."""
    heads = max(1, query.shape[0] // 2)
    group = query.shape[0] // key.shape[0]  # query heads that share a key head
    shared = key.repeat_interleave(group, dim=0)[:heads].float()
    logits = torch.einsum("hrd,hpd->rhp", query[:heads, rows].float(), shared) * query.shape[-1] ** -0.5
    later = torch.arange(logits.shape[-1], device=logits.device) > rows[:, None]
    logits = logits.masked_fill(later[:, None], -torch.inf)
    wanted = logits.masked_fill(~targets[:, None], -torch.inf).logsumexp(-1)
    return (logits.logsumexp(-1) - wanted).mean()
