"""The losses of EDJE's training (arXiv 2510.06820) and the batches that they are computed on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmrr.backbones import edje as backbone
from mmrr.errors import MmrrError
from mmrr.scorers import edje as scorer
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.queries import LabelledQuery
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.families.edje_init import Network
from mmrr.training.families.edje_pretrain import POINTING_LAYER, Cells, Pointing, cells_of, ends_of
from mmrr.training.from_scratch.batches import BatchMaker
from mmrr.training.loop import Losses

#: Share of a text's pieces that are masked, always by [MASK] (paper, masked language modelling).
MASKED = 0.5
#: Tokens of a page up to which plain attention is faster than the fused kernel on a CPU and needs little memory.
SHORT = 512


class LossSettings(Protocol):
    """What the losses read of EDJE's config: the seed and the weights."""

    @property
    def seed(self) -> int: ...

    @property
    def punctuation(self) -> bool: ...

    @property
    def masking(self) -> float: ...

    @property
    def distillation(self) -> float: ...

    @property
    def pointing(self) -> float: ...


def listwise(scores: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Softmax cross-entropy of each positive against its negatives, mean of both directions (paper, ITM).

    ``scores`` (Q, P) of queries against pages; ``owner`` (Q,) the page of each query; ``answers`` (Q, P) the pages that
    answer a query, which are not negatives. The negative pages of a query are all others. The negative queries of its
    page are those that this page does not answer. With one negative each the loss is -log sigmoid(s_pos - s_neg).
    """
    by_page = scores.masked_fill(answers & ~_own(owner, answers), -torch.inf)
    rivals = answers.T[owner] & ~torch.eye(len(owner), dtype=torch.bool, device=scores.device)
    by_query = scores.T[owner].masked_fill(rivals, -torch.inf)
    itself = torch.arange(len(owner), device=scores.device)
    return (F.cross_entropy(by_page, owner) + F.cross_entropy(by_query, itself)) / 2


def distilled(student: Tensor, teacher: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Binary cross-entropy of the student's logits (Q, P) on sigmoid of the teacher's (paper, distillation).

    The mean of three means: over positives, negative pages and negative queries. In a matrix every pair that is not an
    answer is a negative page of its query and a negative query of its page, so the last two means are equal.
    """
    loss = F.binary_cross_entropy_with_logits(student, torch.sigmoid(teacher), reduction="none")
    positives, negatives = loss[_own(owner, answers)], loss[~answers]
    groups = [positives.mean()] + ([negatives.mean()] * 2 if len(negatives) else [])
    return torch.stack(groups).mean()


def masked(pieces: Sequence[int], mask: int, rng: random.Random) -> tuple[list[int], list[int]]:
    """``pieces`` of a text with each replaced by ``mask`` with probability 0.5, and the places of those replaced."""
    places = [place for place in range(len(pieces)) if rng.random() < MASKED]
    hidden = list(pieces)
    for place in places:
        hidden[place] = mask
    return hidden, places


def accuracy(scores: Tensor, owner: Tensor, answers: Tensor) -> Tensor:
    """Share of the queries whose own page scores above all pages that do not answer them."""
    own = scores.gather(1, owner[:, None])[:, 0]
    return (own > scores.masked_fill(answers, -torch.inf).amax(1)).float().mean()


def _own(owner: Tensor, answers: Tensor) -> Tensor:
    return F.one_hot(owner, answers.shape[1]).bool()


# Batches


@dataclass(frozen=True, slots=True)
class Passage:
    """Words of a page of the batch, to be masked."""

    page: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """The pages of a batch, and queries that each come from one of them."""

    step: int
    pages: list[Tensor]  # (T, D) each
    queries: list[str]
    owner: Tensor  # (Q,) the page that a query comes from
    answers: Tensor  # (Q, P) the pages that answer it, including its own
    passages: list[Passage]  # masked texts
    cells: list[Cells]  # of each page's folded words


class Batches:
    """Maps a step number to a Batch."""

    def __init__(self, seed: int, passages: int, makers: Sequence[BatchMaker]) -> None:
        """``passages`` a page; 0: the queries are masked. ``makers`` are tried in turn: a strip may have no words."""
        self.seed, self.passages, self.makers = seed, passages, list(makers)

    def __call__(self, step: int) -> Batch:
        """Raises MmrrError if the drawn pages hold too few words for queries."""
        for make in self.makers:
            found = make(step)
            if len(found.pages) > 1:
                return self._batch(step, found.pages, found.queries)
        raise MmrrError("the drawn pages hold too few words for queries; expected documents with more text")

    def _batch(self, step: int, pages: list[ReadPage], labelled: list[list[LabelledQuery]]) -> Batch:
        rng = random.Random(f"{self.seed}/passages/{step}")
        queries = [(one.text, page) for page, its in enumerate(labelled) for one in its]
        passages = [passage(page, at, rng) for at, page in enumerate(pages) for _ in range(self.passages)]
        answers = [[at == own or holds(page, text) for at, page in enumerate(pages)] for text, own in queries]
        return Batch(
            step,
            [page.tokens for page in pages],
            [text for text, _ in queries],
            torch.tensor([page for _, page in queries]),
            torch.tensor(answers),
            passages or [Passage(page, (text,)) for text, page in queries],
            [cells_of(page) for page in pages],
        )


def passage(page: ReadPage, number: int, rng: random.Random) -> Passage:
    """Consecutive words from a random place of page ``number``, as many as a text may have pieces."""
    first = rng.randrange(max(1, len(page.words) - scorer.MAX_PIECES // 2))
    return Passage(number, tuple(page.words[first : first + scorer.MAX_PIECES]))


def holds(page: ReadPage, query: str) -> bool:
    """True if a page is known to answer a query: it is one of its questions, or the page has its words in a row."""
    if any(question.text == query for question in page.questions):
        return True
    words = f" {' '.join(filter(None, map(fold, query.split())))} "
    return words in f" {' '.join(filter(None, page.folded))} "


# The model with its losses


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen EDJE over the same vision encoder."""

    network: Network
    pieces: backbone.WordPieces
    punctuation: bool  # whether it reads punctuation


class Lesson:
    """A network with its word pieces, its teacher and the weights of its losses.

    *Pointing* applies to a Local network, whose vision tokens are the page's cells: in the second layer half of the
    heads must attend from the last piece of a query's word to the cells that show it, or to ``[CLS]`` if the page lacks
    it.
    """

    def __init__(
        self, settings: LossSettings, network: Network, pieces: backbone.WordPieces, teacher: Teacher | None
    ) -> None:
        self.settings, self.network, self.pieces, self.teacher = settings, network, pieces, teacher

    def losses(self, batch: Batch) -> Losses:
        """The weighted sum, each loss, and the ``accuracy``."""
        with self._attention(batch.pages):
            return self._losses(batch)

    def _attention(self, pages: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """Plain attention for short sequences on a CPU: the fused kernel's gradient takes several times as long."""
        longest = self.network.sizes.tokens or max(map(len, pages))
        plain = self.network.device.type == "cpu" and longest <= SHORT
        return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()

    def _losses(self, batch: Batch) -> Losses:
        settings, network = self.settings, self.network
        parts = network.parts()
        texts = [self.ids(query) for query in batch.queries]
        points = settings.pointing and not network.sizes.tokens and network.sizes.layers > POINTING_LAYER
        ends = [ends_of(self.ids, query.split()) for query in batch.queries]
        pointing = Pointing(parts[1], batch.cells, texts, ends)
        scores, z = network.against(parts, batch.pages, texts, self.pieces.sep, pointing.watch if points else None)
        matched = listwise(scores, batch.owner, batch.answers)
        found = {"loss": matched, "matched": matched}
        if points:
            found["pointed"] = pointing.loss()
            found["loss"] = found["loss"] + settings.pointing * found["pointed"]
        if settings.masking:
            found["masked"] = self._masked(parts[1], batch, z)
            found["loss"] = found["loss"] + settings.masking * found["masked"]
        if self.teacher:
            found["distilled"] = distilled(scores, self._taught(self.teacher, batch), batch.owner, batch.answers)
            found["loss"] = found["loss"] + settings.distillation * found["distilled"]
        return found | {"accuracy": accuracy(scores, batch.owner, batch.answers)}

    def ids(self, text: str) -> list[int]:
        """Ids of ``[CLS] text [SEP]``."""
        return scorer.text_ids(self.pieces, text, punctuation=self.settings.punctuation)

    def _masked(self, encoder: backbone.JointEncoder, batch: Batch, z: Sequence[Tensor]) -> Tensor:
        """Cross-entropy of the masked pieces, given the rest of the text and its page."""
        rng = random.Random(f"{self.settings.seed}/mask/{batch.step}")
        states, wanted = [], []
        assert self.pieces.mask is not None  # checked before the training begins
        for passage in batch.passages:
            text = self.ids(" ".join(passage.words))
            hidden, places = masked(text[1:-1], self.pieces.mask, rng)
            if not places:
                continue
            ids = [text[0], *hidden, text[-1]]
            x = encoder.states(ids, self.pieces.sep, z[passage.page][None], len(ids))
            states.append(x[0, [1 + place for place in places]])
            wanted += [text[1 + place] for place in places]
        if not wanted:
            return z[0].sum() * 0
        logits = self.network.language_model.cls(torch.cat(states))
        return F.cross_entropy(logits.float(), torch.tensor(wanted, device=logits.device))

    @torch.no_grad()
    def _taught(self, teacher: Teacher, batch: Batch) -> Tensor:
        """The teacher's logits (Q, P)."""
        texts = [scorer.text_ids(teacher.pieces, query, punctuation=teacher.punctuation) for query in batch.queries]
        return teacher.network.scores(batch.pages, texts, teacher.pieces.sep)

    def measure(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Listwise loss and accuracy over batches of held-out pages."""
        sums = torch.zeros(2)
        for batch in batches:
            texts = [self.ids(query) for query in batch.queries]
            scores = self.network.scores([page.to(self.network.device) for page in batch.pages], texts, self.pieces.sep)
            owner, answers = batch.owner.to(scores.device), batch.answers.to(scores.device)
            sums += torch.stack([listwise(scores, owner, answers), accuracy(scores, owner, answers)]).cpu()
        loss, share = (sums / len(batches)).tolist()
        return {"val_loss": loss, "val_accuracy": share}
