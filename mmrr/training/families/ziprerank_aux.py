"""Auxiliary losses of a small ZipRerank from random init: where heads look, and what states predict.

A loss on the ranking alone leaves chance much later. Published models need none of these losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrr import random_checkpoint
from mmrr.backbones.qwen3_vl import Backbone, PageSequence, Visual
from mmrr.training.data.queries import folded_ends
from mmrr.training.data.ranked_lists import ListSample, WordCell
from mmrr.training.pointing import attention_logits, pointing_loss

#: The losses, by their columns in the log.
LOSSES = ("pointed", "gathered", "chosen", "named", "judged", "alike")
#: Cells of a list with a pointing loss: at most this many that hold a query word, and as many that hold none.
MAX_CELLS = 48
#: Factor of the cosines in the likeness loss.
SCALE = 20.0


class AuxiliaryLosses:
    """The auxiliary losses of one list. A loss that does not apply is 0.

    * *Pointing* (``pointed``): in one layer half of the heads must look from a cell to the query words that it shows,
      or to the instruction if it shows none.
    * *Gathering* (``gathered``): in the next layer half of the heads must look from the mark behind a page to the
      page's cells that show rare words of the query, or to the instruction.
    * *Naming* (``named``): before the last layer, the states of cells and marks must predict the page's letter.
    * *Judging* (``judged``): the marks' states must also predict yes or no, whether the page is relevant.
    * *Likeness* (``alike``), with pruning: of a page's cells those that show a rare word must be nearest to the query.
    * *Choosing* (``chosen``): in the last layer half of the heads must look from the bracket to a relevant page or its
      mark.
    """

    def __init__(self, backbone: Backbone, shown: ListSample, layer: int, letters: Sequence[int]) -> None:
        """``layer``: that of the pointing loss. ``letters``: token ids."""
        self.backbone, self.shown, self.layer = backbone, shown, layer
        self.letters = list(letters[: len(shown.pages)])
        self.answers = [backbone.chat.token_id(word) for word in random_checkpoint.WORDS]
        self.pointed = self.gathered = self.chosen = self.named = self.judged = torch.zeros((), device=backbone.device)
        self.alike = self.judged

    def values(self) -> dict[str, Tensor]:
        """The losses by name."""
        return {name: getattr(self, name) for name in LOSSES}

    def add_likeness(self, near: Sequence[Tensor]) -> None:
        """Compute the likeness loss. ``near`` (T,) of each page: the tokens' nearness to the query, which prunes."""
        cells: dict[tuple[int, str], list[int]] = {}
        for one in self.shown.word_cells:
            for word in self.shown.rare_words.intersection(one.words):
                cells.setdefault((one.page, word), []).append(one.cell)
        logits = [SCALE * one for one in near]
        losses = [logits[page].logsumexp(0) - logits[page][held].logsumexp(0) for (page, _), held in cells.items()]
        if losses:
            self.alike = torch.stack(losses).mean()

    def locate(
        self,
        sequence: PageSequence,
        visuals: Sequence[Visual],
        kept: Sequence[Tensor | None],
        before: int,
        bracket: int,
    ) -> None:
        """Find the rows and targets of the losses in the prompt.

        ``kept``: the cells of each page whose tokens are in the prompt, None for all; ``before``: tokens before the
        query; ``bracket``: the place of the last one.
        """
        tokens = sequence.visual
        assert isinstance(tokens, Tensor)  # several pages: the places of their tokens
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
        self.cells = [*_spread(holding, MAX_CELLS), *_spread(empty, MAX_CELLS)]
        self.rows = tokens[[places[one.page][one.cell] for one in self.cells]]
        self.marks = tokens[[last - 1 for last in first[1:]]] + 1
        pages = [*(one.page for one in self.cells), *range(len(visuals))]
        self.pages = torch.tensor(pages, device=self.rows.device)
        self.bracket = torch.tensor([bracket], device=self.rows.device)
        n = len(sequence.embeddings)
        self.targets = self._word_targets(before, n).to(self.rows.device)
        gathered = torch.zeros(len(visuals), n, dtype=torch.bool)
        for one in holding:
            if self.shown.rare_words.intersection(one.words):
                gathered[one.page, tokens[places[one.page][one.cell]]] = True
        gathered[:, :before] = ~gathered.any(1, keepdim=True)
        self.holding = gathered.to(self.rows.device)
        self.relevant = torch.zeros(1, n, dtype=torch.bool, device=self.rows.device)
        for page in self.shown.relevant:
            self.relevant[0, tokens[first[page] : first[page + 1]]] = True
            self.relevant[0, self.marks[page]] = True

    def _word_targets(self, before: int, n: int) -> Tensor:
        """For each cell of the pointing loss the last tokens of the query words that it shows, (cells, n) bool."""
        ends: dict[str, list[int]] = {}
        for word, end in folded_ends(self.shown.query):
            ends.setdefault(word, []).append(before + 1 + end)  # + 1: the segment begins with a blank
        targets = torch.zeros(len(self.cells), n, dtype=torch.bool)
        for row, one in enumerate(self.cells):
            found = [place for word in one.words for place in ends.get(word, ())]
            targets[row, found or slice(0, before)] = True
        return targets

    def add_attention(self, layer: int, query: Tensor, key: Tensor) -> None:
        """Compute the losses on attention, from a layer's rotated ``query`` (H, n, d) and ``key`` (H_kv, n, d)."""
        if layer == self.layer and len(self.rows):
            self.pointed = _causal_pointing(query, key, self.rows, self.targets)
        if layer == self.layer + 1:
            self.gathered = _causal_pointing(query, key, self.marks, self.holding)
        if layer == self.backbone.n_layers - 1 and self.shown.relevant:
            self.chosen = _causal_pointing(query, key, self.bracket, self.relevant)

    def add_states(self, layer: int, x: Tensor) -> None:
        """Compute the losses on states from the output ``x`` (n, D) of the last layer but one."""
        if layer != self.backbone.n_layers - 2:
            return
        states = self.backbone.text.norm(x[torch.cat([self.rows, self.marks])].float()).float()
        self.named = F.cross_entropy(states @ self.backbone.head_rows(self.letters).T, self.pages)
        yes, no = self.backbone.head_rows(self.answers)
        relevant = torch.zeros(len(self.marks), device=x.device)
        relevant[list(self.shown.relevant)] = 1.0
        self.judged = F.binary_cross_entropy_with_logits(states[len(self.rows) :] @ (yes - no), relevant)


def _spread(cells: Sequence[WordCell], n: int) -> list[WordCell]:
    """At most ``n`` of the cells, evenly spaced."""
    return list(cells[:: max(1, math.ceil(len(cells) / n))])


def _causal_pointing(query: Tensor, key: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """The mean pointing loss from ``rows`` (R,) to ``targets`` (R, n), under a causal mask."""
    logits = attention_logits(query, key, rows)
    later = torch.arange(logits.shape[-1], device=logits.device) > rows[:, None]
    return pointing_loss(logits.masked_fill(later[:, None], -torch.inf), targets[:, None]).mean()
