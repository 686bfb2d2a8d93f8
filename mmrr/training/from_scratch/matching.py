"""Teaches the language models of embedder and reranker to match words with cells, then queries with pages.

Three trainings. *Pre-training*: the first layers turn the bytes of a word into the hashed n-grams that the vision tower
finds in cells, so that query and page states have one meaning where the band begins. *Contrast* (embedder): vectors of
words and of cells. *Judging* (reranker): yes or no with band, exit and pruning on. Both add the pointing loss: in the
layer behind the pre-trained layers, half of the heads must attend from a word of the query to the cells that show it,
or to the instruction if the page lacks it. A loss on the answer alone leaves chance much later.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrr.backbones.qwen3_vl import Backbone, PageSequence
from mmrr.embedders import colqwen3
from mmrr.modeling.plain_forward import Layer, Watch, one_layer, pad, read_batch, read_page, score_states
from mmrr.modeling.saliency import Saliency, choose
from mmrr.scorers import minireranker
from mmrr.training.data.cell_targets import N_HASHES, fold, word_hashes
from mmrr.training.data.queries import contains_words, folded_ends
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.from_scratch.batches import Batch
from mmrr.training.loop import Losses
from mmrr.training.pointing import attention_logits, pointing_loss
from mmrr.types import Embedding

#: Letters of the shortest word with a pointing loss; shorter words are on nearly every page.
_MIN_LETTERS = 3
#: Lower bound of an attention value before its log is taken.
_MIN_ATTENTION = 1e-8
#: Compiled forms of a layer: one for pages and one for queries, for each layer.
_MAX_COMPILED = 64


class Pretraining(nn.Module):
    """The first layers of a language model, trained to predict the word hashes of query words and of page cells."""

    def __init__(self, scorer: minireranker.Scorer, head: nn.Linear, layers: int) -> None:
        """``head``: from states (D) to hash logits, as trained with the reader's vision tower."""
        super().__init__()
        self.scorer, self.layers = scorer, layers
        backbone = scorer.backbone
        self.text = nn.ModuleList([backbone.text.embed_tokens, *backbone.text.layers[:layers]])
        self.head = head
        self.scale = nn.Parameter(torch.ones(2))

    def losses(self, batch: Batch) -> Losses:
        """Binary cross-entropy of the hashes: at the last byte of each query word, and in each cell of two pages."""
        backbone = self.scorer.backbone
        texts = [query.text for queries in batch.queries for query in queries]
        ids, _ = pad([self.scorer.segments(text)[1] for text in texts])
        embeddings = backbone.text.embed_tokens(ids.to(backbone.device))
        hidden = read_batch(backbone, embeddings, self.layers)
        words = [(row, *found) for row, text in enumerate(texts) for found in folded_ends(text)]
        offset = query_offset(self.scorer)
        rows, columns = [row for row, _, _ in words], [offset + end for _, _, end in words]
        by_word = self._loss(hidden[rows, columns] * self.scale[0], [word_hashes(word) for _, word, _ in words])
        by_cell = torch.stack([self._page_loss(page) for page in batch.pages[:2]]).mean()
        return {"loss": by_word + by_cell, "words": by_word, "cells": by_cell}

    def _page_loss(self, page: ReadPage) -> Tensor:
        sequence = sequence_of(self.scorer, page, None)
        states = read_page(self.scorer.backbone, sequence, self.layers)[sequence.visual]
        found: dict[int, set[int]] = {}
        for word, cells in zip(page.folded, page.cells, strict=True):
            for cell in cells:
                found.setdefault(cell, set()).update(word_hashes(word))
        return self._loss(states * self.scale[1], [found.get(i, ()) for i in range(len(states))])

    def _loss(self, hidden: Tensor, targets: Sequence[Collection[int]]) -> Tensor:
        wanted = hash_targets(targets, hidden.device)
        return F.binary_cross_entropy_with_logits(self.head(hidden).float(), wanted) * N_HASHES


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """The cuts of a reranker in training, and the weights of its losses."""

    band: tuple[int, int]
    exit_layer: int
    keep: float  # share of the visual tokens, selected by the page's saliency
    pointing: float  # weight of the pointing loss
    pointing_layer: int  # a layer of the band
    ranking: float = 0.0  # weight of the ranking loss; it needs queries that several pages share


class Judge(nn.Module):
    """A reranker in training."""

    def __init__(self, scorer: minireranker.Scorer, options: JudgeOptions) -> None:
        """The text model of ``scorer`` is trained."""
        super().__init__()
        self.scorer, self.options = scorer, options
        self.text = scorer.backbone.text

    def forward(self, page: ReadPage, suffixes: Sequence[Sequence[int]], watch: Watch | None = None) -> Tensor:
        """The score z (Q,) of one page for each query, given as the scorer's second segment."""
        options = self.options
        sequence = sequence_of(self.scorer, page, kept_cells(page, options.keep))
        states = score_states(self.scorer.backbone, sequence, suffixes, options.band, options.exit_layer, watch)
        hidden = self.text.norm(states.float()).float()
        chat, weight = self.scorer.backbone.chat, self.text.embed_tokens.weight  # tied with the output head
        return hidden @ (weight[chat.token_id("yes")] - weight[chat.token_id("no")]).float()

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy of yes and no, plus the pointing loss and the ranking loss with their weights.

        With the ranking loss, relevant and other pairs get the same total weight in the cross-entropy.
        """
        scores, labels, points = [], [], []
        for page, queries in zip(batch.pages, batch.queries, strict=True):
            texts = [query.text for query in queries]
            suffixes = [self.scorer.segments(text)[1] for text in texts]
            pointing = _WordPointing(self, page, texts, [len(suffix) for suffix in suffixes])
            scores.append(self(page, suffixes, pointing.watch))
            labels.append(torch.tensor([query.relevant for query in queries]))
            points.append(pointing.loss)
        z, y = torch.cat(scores), torch.cat(labels).to(scores[0].device)
        balance = (~y).sum() / y.sum().clamp(min=1) if self.options.ranking else None
        judged = F.binary_cross_entropy_with_logits(z, y.float(), pos_weight=balance)
        pointed = torch.stack(points).mean()
        accuracy = ((z > 0) == y).float().mean()
        loss = judged + self.options.pointing * pointed
        found = {"loss": loss, "judged": judged, "pointed": pointed, "accuracy": accuracy}
        if self.options.ranking:
            found["ranked"], found["first"] = ranked(z, y, batch)
            found["loss"] = found["loss"] + self.options.ranking * found["ranked"]
        return found


def ranked(z: Tensor, y: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The ranking loss, and the share of queries whose best page is relevant.

    The loss is the cross-entropy of each query over the pages that have it. ``z`` and ``y``: scores and labels, page by
    page. Queries without both a relevant and another page are left out.
    """
    pairs = [(query.text, page) for page, queries in enumerate(batch.queries) for query in queries]
    rows = {text: row for row, text in enumerate(dict.fromkeys(text for text, _ in pairs))}
    at = [rows[text] for text, _ in pairs], [page for _, page in pairs]
    scores = torch.full((len(rows), len(batch.pages)), -torch.inf, device=z.device)
    answers = torch.zeros_like(scores, dtype=torch.bool)
    scores[at], answers[at] = z.float(), y
    counted = answers.any(1) & (~answers & scores.isfinite()).any(1)
    scores, answers = scores[counted], answers[counted]
    if not len(scores):
        return z.sum() * 0, z.new_ones(())
    loss = (scores.logsumexp(1) - scores.masked_fill(~answers, -torch.inf).logsumexp(1)).mean()
    return loss, answers.gather(1, scores.argmax(1, keepdim=True)).float().mean()


class _WordPointing:
    """The pointing loss of one page: from the last letter of each query word to the cells that show the word."""

    def __init__(self, judge: Judge, page: ReadPage, texts: Sequence[str], lengths: Sequence[int]) -> None:
        """``lengths``: tokens of the texts' segments."""
        self.loss = torch.zeros((), device=judge.scorer.backbone.device)
        self.layer = judge.options.pointing_layer
        kept = kept_cells(page, judge.options.keep)
        before = len(judge.scorer.before)
        on_page = range(len(page.tokens)) if kept is None else kept.tolist()
        place = {cell: before + i for i, cell in enumerate(on_page)}
        cells: dict[str, set[int]] = {}
        for word, of_word in zip(page.folded, page.cells, strict=True):
            cells.setdefault(word, set()).update(place[cell] for cell in of_word if cell in place)
        starts = itertools.accumulate(lengths[:-1], initial=query_offset(judge.scorer))
        found = [(at, *end) for at, text in zip(starts, texts, strict=True) for end in folded_ends(text)]
        found = [one for one in found if len(one[1]) >= _MIN_LETTERS]
        self.rows = [at + end for at, _, end in found]  # last letters, counted over the tokens of all queries
        self.targets = [sorted(cells.get(word) or range(before)) for _, word, _ in found]

    def watch(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """Compute the loss in its layer, from rotated ``queries`` (H, S, d) and ``keys`` (H_kv, P, d)."""
        if layer != self.layer or not self.rows:
            return
        logits = attention_logits(queries, keys, self.rows)
        targets = torch.zeros(len(self.rows), logits.shape[-1], dtype=torch.bool, device=logits.device)
        for row, places in enumerate(self.targets):
            targets[row, places] = True
        self.loss = pointing_loss(logits, targets[:, None]).mean()


class Contrast(nn.Module):
    """A late-interaction embedder in training: each query finds its page among the batch's pages.

    Three more losses. *Pointing*: each longer word must find the cells that show it among the cells of all pages; this
    needs a tenth of the steps. *Whole*: the last tokens' states, as one vector of a page and of a query, find each
    other; no search uses them, but the last token's attention tells which cells matter. *Attention distillation*: that
    attention, which prunes, stays equal to that of the embedder that made the pages' saliency, while search keeps
    learning.

    Pages of earlier batches are not used as negatives: the encoder changes so fast that it would first learn to tell
    old vectors from new ones.
    """

    def __init__(
        self,
        embedder: colqwen3.Embedder,
        search: colqwen3.Search,
        pointing: float = 1.0,
        whole: float = 0.3,
        attention_distillation: float = 0.0,
        fused: bool = False,
    ) -> None:
        """``pointing``, ``whole``, ``attention_distillation``: loss weights; the last needs pages with a saliency.

        ``fused``: compile each layer; this needs a C++ compiler and takes half a minute.
        """
        super().__init__()
        if fused:  # torch stops compiling after 8 forms by default and would run the other layers uncompiled
            torch._dynamo.config.recompile_limit = _MAX_COMPILED
        self.layer: Layer = torch.compile(one_layer, dynamic=True) if fused else one_layer
        self.embedder, self.search, self.pointing, self.whole = embedder, search, pointing, whole
        self.attention_distillation = attention_distillation
        self.text, self.projection = embedder.backbone.text, embedder.projection
        self.temperature = nn.Parameter(torch.tensor(2.0))  # both are the log of a scale
        self.whole_temperature = nn.Parameter(torch.tensor(3.0))

    def page_vectors(self, page: ReadPage) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (V, dim) of the page, one vector (D,) of the whole, and the last token's attention (T,).

        The attention is computed only if it is distilled.
        """
        backbone = self.embedder.backbone
        sequence = _sequence(backbone, self.embedder.before, page, self.embedder.after, None)
        assert isinstance(sequence.visual, slice)  # one page
        saliency = Saliency(sequence.visual)
        observe = saliency.observe if self.attention_distillation else None
        states = self._normed(read_page(backbone, sequence, backbone.n_layers, self.layer, observe))
        return self.embedder.page_vectors(states, sequence.visual), F.normalize(states[-1], dim=-1), saliency.total

    def query_vectors(self, texts: Sequence[str]) -> tuple[Tensor, list[int], list[str], Tensor]:
        """Vectors (M, dim) of all queries' words, the query and the word of each, and one vector (Q, D) a query."""
        backbone = self.embedder.backbone
        encoded = [self.embedder.query(text, self.search) for text in texts]
        ids, lengths = pad([ids for ids, _ in encoded])
        embeddings = backbone.text.embed_tokens(ids.to(backbone.device))
        states = self._normed(read_batch(backbone, embeddings, backbone.n_layers, self.layer))
        owners = [row for row, (_, words) in enumerate(encoded) for _ in words]
        places = [place for _, words in encoded for place in words]
        wholes = F.normalize(states[torch.arange(len(texts)), lengths - 1], dim=-1)
        names = [word for _, words in encoded for word in words.values()]
        return self.embedder.query_vectors(states[owners, places]), owners, names, wholes

    def _normed(self, states: Tensor) -> Tensor:
        normed: Tensor = self.text.norm(states.float()).float()
        return normed

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy of queries over pages, of longer words over cells, and of whole vectors over pages.

        A page of another query that holds all longer words of a query is left out: it may answer the query too.
        """
        queries = [(query.text, page) for page, its in zip(batch.pages, batch.queries, strict=True) for query in its]
        vectors, wholes, saliencies = zip(*map(self.page_vectors, batch.pages), strict=True)
        words, owners, names, query_wholes = self.query_vectors([text for text, _ in queries])
        sizes = [len(of_page) for of_page in vectors]
        products = (words @ torch.cat(vectors).T).float()
        best = torch.stack([of_page.amax(1) for of_page in torch.split(products, sizes, dim=1)], dim=1)
        device = best.device
        scores = best.new_zeros(len(queries), len(sizes)).index_add(0, torch.tensor(owners, device=device), best)
        answers = torch.tensor([[answered(page, *one) for page in batch.pages] for one in queries], device=device)
        unknown = torch.tensor(
            [[contains_words(page, text) for page in batch.pages] for text, _ in queries], device=device
        )
        found, accuracy = _contrastive(scores * self.temperature.exp(), answers, unknown)
        pooled = query_wholes @ torch.stack(wholes).T
        whole, _ = _contrastive(pooled.float() * self.whole_temperature.exp(), answers, unknown)
        pointed = self._pointed(products * self.temperature.exp(), names, batch.pages, sizes)
        loss = found + self.pointing * pointed + self.whole * whole
        losses = {"loss": loss, "found": found, "pointed": pointed, "whole": whole, "accuracy": accuracy}
        if self.attention_distillation:
            distilled = [_log_ratio_variance(now, p.saliency) for now, p in zip(saliencies, batch.pages, strict=True)]
            losses["attention_distillation"] = torch.stack(distilled).mean()
            losses["loss"] = loss + self.attention_distillation * losses["attention_distillation"]
        return losses

    def _pointed(self, logits: Tensor, names: Sequence[str], pages: Sequence[ReadPage], sizes: Sequence[int]) -> Tensor:
        """The pointing loss of words (M) over the cells of all pages, for the words that some page shows."""
        shown: dict[str, list[int]] = {}
        for page, first in zip(pages, itertools.accumulate(sizes[:-1], initial=0), strict=True):
            for word, cells in zip(page.folded, page.cells, strict=True):
                shown.setdefault(word, []).extend(first + cell for cell in cells)
        wanted = [shown.get(word, []) if len(word) >= _MIN_LETTERS else [] for word in map(fold, names)]
        rows = [row for row, found in enumerate(wanted) if found]
        if not rows:
            return logits.sum() * 0
        targets = torch.zeros(len(rows), logits.shape[1], dtype=torch.bool, device=logits.device)
        for at, row in enumerate(rows):
            targets[at, wanted[row]] = True
        return pointing_loss(logits[rows], targets).mean()


def _contrastive(logits: Tensor, answers: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of queries (Q) over pages (P), and the share of queries whose best page answers them.

    Pages that are ``unknown`` and not known to answer are left out.
    """
    logits = logits.masked_fill(unknown & ~answers, -torch.inf)
    loss = (logits.logsumexp(1) - logits.masked_fill(~answers, -torch.inf).logsumexp(1)).mean()
    return loss, answers.gather(1, logits.argmax(1, keepdim=True)).float().mean()


def _log_ratio_variance(now: Tensor, then: Tensor | None) -> Tensor:
    """Variance over a page's cells of the log ratio of its saliency (T,) to the reference embedder's saliency.

    It is 0 where the two are proportional. Logs, because pruning decides among cells with little attention.
    """
    assert then is not None  # with this loss, the pages' features come with an embedder's saliency
    now, then = (one.float().clamp(min=_MIN_ATTENTION).log() for one in (now, then.to(now.device)))
    return (now - then).var()


def answered(page: ReadPage, text: str, owner: ReadPage) -> bool:
    """True if a page is known to answer a query that was made for ``owner``."""
    return page is owner or any(text == question.text for question in page.questions)


def hash_targets(targets: Sequence[Collection[int]], device: torch.device) -> Tensor:
    """Sets of hash buckets as rows of zeros and ones, (n, N_HASHES)."""
    rows = torch.zeros(len(targets), N_HASHES)
    for row, buckets in enumerate(targets):
        rows[row, list(buckets)] = 1.0
    return rows.to(device)


def query_offset(scorer: minireranker.Scorer) -> int:
    """Tokens before the query in the scorer's second segment."""
    one, other = (scorer.segments(text)[1] for text in "ab")
    return next(i for i, (this, that) in enumerate(zip(one, other, strict=True)) if this != that)


def kept_cells(page: ReadPage, share: float) -> Tensor | None:
    """Raster indices of the most salient cells, ascending; None keeps all."""
    if share >= 1 or page.saliency is None:
        return None
    return choose(Embedding(page.tokens[:1], page.saliency, page.grid), page.grid, share).indices.long()


def sequence_of(scorer: minireranker.Scorer, page: ReadPage, kept: Tensor | None) -> PageSequence:
    """The scorer's first segment over this page."""
    return _sequence(scorer.backbone, scorer.before, page, scorer.after, kept)


def _sequence(
    backbone: Backbone, before: Sequence[int], page: ReadPage, after: Sequence[int], kept: Tensor | None
) -> PageSequence:
    return backbone.page_sequence(before, page.visual(backbone), after, kept)
