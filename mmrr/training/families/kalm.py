"""Trains KaLM-Reranker (arXiv 2606.22807): a small one from random init on texts, or a checkpoint on pairs.

A step encodes each page once, pools it at several ratios, and judges all its queries at each ratio: yes or no, averaged
over the ratios (matryoshka over the length of a page). The model is transformers' own; prompts and windows are the
scorer's, so a training optimizes the computation that scores.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.devices import resolve_dtype
from mmrr.scorers import kalm
from mmrr.training.config import CHECKPOINT, ModelName
from mmrr.training.data.page_texts import (
    Batch,
    BatchMaker,
    BatchSize,
    PairMaker,
    TextReports,
    Trial,
    read_text_pairs,
    trials,
)
from mmrr.training.data.queries import folded_ends
from mmrr.training.distributed import join
from mmrr.training.families import kalm_init
from mmrr.training.families.kalm_init import POINTING_LAYER, Shape
from mmrr.training.loop import Losses, MakeBatch, Records, RunFolder, Schedule, Tell, Training, mixed
from mmrr.training.loop import train as run_loop
from mmrr.training.pointing import half_of_heads, pointing_loss_of_weights
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.workspace.files import HashCache

#: No checkpoint to start from: random init.
NEW = ModelName("")

#: Prompts of one decoder pass. They are sorted by length, so there is little padding.
ROWS = 32
#: Ratios that held-out pages are ranked at.
TESTED = (1, 4)
#: Reports drawn from the held-out documents, and queries of each kind for a report.
HELD_OUT_REPORTS, HELD_OUT_QUERIES = 16, 6
#: Letters of the shortest word with a pointing loss.
MIN_LETTERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """KaLM-Reranker on ``documents``, or on ``pairs`` of a query and a text."""

    scorer: str
    documents: tuple[Path, ...] = ()  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never trained on
    pairs: Path | None = None  # JSON Lines of pairs, see docs/kalm.md
    validation: Path | None = None  # pairs to measure on, never trained on
    model: ModelName = NEW  # a checkpoint to start from; default: random init with this shape
    revision: str = ""  # of the model on the Hub
    shape: Shape = field(default_factory=Shape)
    seed: int = 0
    steps: int = 4000
    lr: float = 1e-3
    warmup: int = 200  # steps
    decay: float = 0.25  # share of the steps over which the rate falls
    accumulate: int = 1  # batches a step
    save_every: int = 250
    evaluate_every: int = 500
    workers: int = 1  # processes that prepare batches
    device: str = "auto"
    dtype: str = "auto"  # bfloat16 (autocast over float32 weights) or float32
    reports: int = 20_000  # different reports to train on
    words: int = 400  # a page, at most
    pages: int = 8  # a batch
    queries: int = 16  # a page; with pairs: at most
    ratios: tuple[int, ...] = kalm.RATIOS  # pooling ratios of a page
    ratios_a_step: int = 2  # drawn for each step; 0: all
    pointing: float = 0.5  # weight of the pointing loss; it needs a byte-level tokenizer

    result: ClassVar[str] = CHECKPOINT

    def __post_init__(self) -> None:
        """Raises MmrrError for a value out of range and for keys that do not fit together."""
        if bool(self.documents) == bool(self.pairs):
            found = "both" if self.pairs else "neither"
            raise MmrrError(f"the config has {found} of `documents` and `pairs`; expected one of them")
        if self.pairs and not self.model:
            raise MmrrError("`pairs` need a `model` to fine-tune; expected the folder or the Hub id of a checkpoint")
        if not self.ratios or not set(self.ratios) <= set(kalm.RATIOS):
            expected = ", ".join(map(str, kalm.RATIOS))
            raise MmrrError(f"ratios = {list(self.ratios)}; expected one or more of {expected}")
        if not 0 <= self.ratios_a_step <= len(self.ratios):
            raise MmrrError(f"ratios_a_step = {self.ratios_a_step}; expected 0 to {len(self.ratios)}")
        if self.pages < 2 and self.documents:
            raise MmrrError(
                f"pages = {self.pages}; expected 2 or more, because a page's negative queries come from other pages"
            )
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise MmrrError(f"dtype = {self.dtype!r}; expected auto, bfloat16 or float32")

    def schedule(self) -> Schedule:
        """Constant rate with a linear decay at the end."""
        return Schedule(self.steps, self.lr, warmup=self.warmup, decay=self.decay, save_every=self.save_every)


def config_class(values: dict[str, Any], path: Path) -> type[Config]:
    """The one config of this family."""
    return Config


# Losses


def yes_no(margins: Tensor, yes: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answer over the two rows of the output head (section 3, stages 1 and 2).

    ``margins`` z = z_yes - z_no (N,); ``yes`` (N,): 1 or 0, or a teacher's P(yes) as the soft label of stage 3.
    """
    return F.binary_cross_entropy_with_logits(margins, yes)


def matryoshka(losses: Sequence[Tensor]) -> Tensor:
    """Mean of the losses at each ratio. The paper gives the ratios, but no weights and no schedule."""
    return torch.stack(list(losses)).mean()


# The model


class Words:
    """Finds the last token of each word of a text, for a byte-level tokenizer."""

    def __init__(self, path: Path) -> None:
        """``path``: the checkpoint. Raises MmrrError for a tokenizer that is not byte-level."""
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        if not isinstance(tokenizer.decoder, ByteLevel):
            raise MmrrError(f"{path}: the tokenizer is not byte-level, which the pointing loss needs; set pointing = 0")
        self._normalizer = tokenizer.normalizer
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        self._sizes = {i: len(piece) for piece, i in pieces.items()}  # one character stands for one byte

    def last_tokens(self, text: str, ids: Sequence[int]) -> list[tuple[str, int]]:
        """Each folded word of MIN_LETTERS or more, with the index of its last token in ``ids``, the ids of ``text``."""
        ends = list(accumulate(self._sizes[i] for i in ids))
        found = [(word, bisect_right(ends, at)) for word, at in folded_ends(self._normalizer.normalize_str(text))]
        return [(word, at) for word, at in found if at < len(ids) and len(word) >= MIN_LETTERS]


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt about one page in the decoder."""

    page: int
    ids: list[int]
    n_fixed: int  # tokens before the query
    looks: list[tuple[int, list[int]]]  # (a query word's last token, last tokens of the same word on the page)


class Judge(nn.Module):
    """KaLM-Reranker in training: the scorer's model with gradients."""

    def __init__(self, scorer: kalm.Scorer, pointing: float = 0.0, words: Words | None = None) -> None:
        """``pointing``: weight of the pointing loss, which needs ``words``.

        Raises MmrrError if the decoder has too few layers for that loss.
        """
        super().__init__()
        self.scorer, self.pointing, self.words = scorer, pointing, words
        self.backbone = scorer.backbone
        self.model = self.backbone.model
        text = self.backbone.text
        self._answers = [text.word("yes"), text.word("no")]
        if words:
            n_layers = len(self.backbone.layer_types)
            if n_layers < POINTING_LAYER + 2:
                expected = f"{POINTING_LAYER + 2} or more"
                raise MmrrError(f"layers = {n_layers}; the pointing loss needs {expected}, or set pointing = 0")
            # The only implementation that returns its weights.
            self.model.get_decoder().set_attn_implementation("eager")

    def windows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each page's first window. Raises MmrrError for a page without text."""
        if not all(text.strip() for text in texts):
            raise MmrrError("a text to train on is empty; expected at least one word")
        return [self.scorer.windows(text)[0] for text in texts]

    def read(self, windows: Sequence[list[int]]) -> list[Tensor]:
        """Encoder output (n, D) of each window."""
        ids, seen = self._padded(windows)
        hidden = self.model.get_encoder()(input_ids=ids, attention_mask=seen).last_hidden_state
        return [row[: len(window)] for row, window in zip(hidden, windows, strict=True)]

    def rows(self, pairs: Sequence[tuple[int, str]], texts: Sequence[str], windows: Sequence[list[int]]) -> list[Row]:
        """The prompt of each pair (page, query). ``texts`` and ``windows``: of all pages."""
        found: list[dict[str, list[int]]] = [{} for _ in windows]  # for each page: word -> its last tokens
        if self.words:
            for of_page, text, ids in zip(found, texts, windows, strict=True):
                for word, at in self.words.last_tokens(f"<Document>: {text}", ids):
                    of_page.setdefault(word, []).append(at)
        rows = []
        for page, query in pairs:
            before, after = self.scorer.prompt(query, kalm.INSTRUCTION)
            looks = []
            if self.words:
                own = self.words.last_tokens(f" {query}", self.backbone.text.encode(f" {query}"))
                looks = [(len(before) + at, found[page].get(word, [])) for word, at in own]
            rows.append(Row(page, before + after, len(before), looks))
        return rows

    def forward(self, hidden: Sequence[Tensor], rows: Sequence[Row], ratio: int) -> tuple[Tensor, list[Tensor]]:
        """The score z (N,) float32 of each row at ``ratio``, and the pointing loss of each decoder pass."""
        chunks = [self.scorer.pool(page, ratio) for page in hidden]
        n_chunks = torch.tensor([len(page) for page in chunks], device=self.backbone.device)
        pages = pad_sequence(chunks, batch_first=True)
        there = (torch.arange(pages.shape[1], device=pages.device) < n_chunks[:, None]).long()
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        margins, points = [], []
        for at in range(0, len(order), ROWS):
            part = [rows[i] for i in order[at : at + ROWS]]
            ids, seen = self._padded([row.ids for row in part])
            of = torch.tensor([row.page for row in part], device=pages.device)
            out = self.model.get_decoder()(
                input_ids=ids,
                attention_mask=seen,
                encoder_hidden_states=pages[of],
                encoder_attention_mask=there[of],
                use_cache=False,
                output_attentions=self.words is not None,
            )
            last = out.last_hidden_state[torch.arange(len(part)), seen.sum(1) - 1]
            yes, no = self.model.lm_head.out_proj.weight[self._answers]
            with mixed(pages.device, None):  # the dot products are in float32, as in the scorer
                margins.append(last.float() @ (yes - no).float())
            if self.words and any(row.looks for row in part):
                points.append(self._pointed(out, part, ratio))
        back = torch.tensor(order, device=pages.device).argsort()
        return torch.cat(margins)[back], points

    def _pointed(self, out: Any, part: Sequence[Row], ratio: int) -> Tensor:
        """The pointing loss of two layers. ``out`` (Any): the output of transformers' decoder, with attention weights.

        In the first layer half of the heads look from a query word to the page's chunks that hold it, or to the
        prompt's beginning if no chunk does. In the next layer they look from the prompt's end back to the query words,
        so that the result for the words reaches the answer.
        """
        n_own = out.attentions[0].shape[-1]
        forth = [
            (i, at, [n_own + token // ratio for token in tokens] or list(range(row.n_fixed)))
            for i, row in enumerate(part)
            for at, tokens in row.looks
        ]
        back = [(i, len(row.ids) - 1, [at for at, _ in row.looks]) for i, row in enumerate(part) if row.looks]
        losses = []
        for layer, looks in ((POINTING_LAYER, forth), (POINTING_LAYER + 1, back)):
            weights = torch.cat([out.attentions[layer], out.cross_attentions[layer]], -1)
            targets = torch.zeros(len(looks), weights.shape[-1], device=weights.device)
            for target, (_, _, columns) in zip(targets, looks, strict=True):
                target[columns] = 1.0
            heads = half_of_heads(weights.shape[1])
            rows = weights[[i for i, _, _ in looks], :heads, [at for _, at, _ in looks]]
            losses.append(pointing_loss_of_weights(rows, targets))
        return torch.stack(losses).sum()

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy of yes and no at each of the batch's ratios; the pages are encoded once."""
        windows = self.windows(batch.pages)
        pairs = [(page, one.query) for page, queries in enumerate(batch.queries) for one in queries]
        yes = torch.tensor([one.yes for queries in batch.queries for one in queries], device=self.backbone.device)
        rows = self.rows(pairs, batch.pages, windows)
        hidden = self.read(windows)
        judged, looked, accuracies = [], [], []
        for ratio in batch.ratios:
            margins, points = self(hidden, rows, ratio)
            judged.append(yes_no(margins, yes))
            looked += points
            accuracies.append(((margins > 0) == (yes > 0.5)).float().mean())
        found = {"judged": matryoshka(judged), "accuracy": torch.stack(accuracies).mean()}
        if not self.words:
            return {"loss": found["judged"], "accuracy": found["accuracy"]}
        found["pointed"] = torch.stack(looked).mean() if looked else torch.zeros_like(found["judged"])
        return {"loss": found["judged"] + self.pointing * found["pointed"], **found}

    def success(self, trials: dict[str, list[Trial]], ratios: Sequence[int]) -> dict[str, float]:
        """For each kind of query and each ratio, the share of queries whose best page of the report answers them."""
        shares: dict[str, float] = {}
        for kind, of_kind in trials.items():
            hits: dict[int, list[bool]] = {ratio: [] for ratio in ratios}
            for trial in of_kind:
                windows = self.windows(trial.pages)
                hidden = self.read(windows)
                pairs = [(page, query) for query, _ in trial.queries for page in range(len(windows))]
                rows = self.rows(pairs, trial.pages, windows)
                for ratio in ratios:
                    best = self(hidden, rows, ratio)[0].view(len(trial.queries), -1).argmax(1).tolist()
                    hits[ratio] += [one in answers for one, (_, answers) in zip(best, trial.queries, strict=True)]
            shares |= {f"{kind}_r{ratio}": sum(its) / len(its) for ratio, its in hits.items() if its}
        return shares

    def _padded(self, ids: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids (N, T), padded with zeros on the right, and the mask (N, T): 1 for a token, 0 for padding."""
        device = self.backbone.device
        lengths = torch.tensor([len(row) for row in ids])
        padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True).to(device)
        return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device)


# Runs


def train(config: Config, run: Path, tell: Tell = lambda _: None) -> Records:
    """Train, yield the log's records, and leave a checkpoint in bfloat16 in the run folder.

    Raises MmrrError for documents, pairs or a checkpoint that cannot be read.
    """
    group = join(config.device)
    data = _from_pairs(config, tell) if config.pairs else _from_documents(config)
    start = _start(config, run, data.documents)
    scorer = kalm.Scorer(start, kalm.Prepare(), group.device, torch.float32)
    scorer.backbone.model.requires_grad_(True)
    words = Words(start.path) if config.pointing and config.documents else None
    judge = Judge(scorer, config.pointing, words)
    dtype = resolve_dtype(config.dtype, group.device)
    n_weights = sum(weight.numel() for weight in judge.parameters())
    number_format = str(dtype).removeprefix("torch.")
    tell(f"{n_weights / 1e6:.1f} million weights, {config.steps} steps on {group.device.type} in {number_format}")
    measure = data.measure
    training = Training(
        model=judge,
        schedule=config.schedule(),
        make_batch=data.make_batch,
        losses=judge.losses,
        evaluate=(lambda: measure(judge)) if measure else None,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        accumulate=config.accumulate,
        autocast=torch.bfloat16 if dtype == torch.bfloat16 else None,
    )
    yield from run_loop(RunFolder(run), training, group)
    if group.is_main:
        kalm_init.save(scorer.backbone.model, run / CHECKPOINT, torch.bfloat16, start.path)
    group.close()


@dataclass(frozen=True, slots=True)
class _Data:
    """What a training reads: its batches, the measurement of a judge, and the documents for a tokenizer."""

    make_batch: MakeBatch
    measure: Callable[[Judge], dict[str, float]] | None
    documents: Sequence[Document] = ()


def _batch_size(config: Config) -> BatchSize:
    return BatchSize(config.pages, config.queries, config.ratios, config.ratios_a_step)


def _from_documents(config: Config) -> _Data:
    """Batches of pages drawn from documents; held-out reports are ranked."""
    known, held_out = split([one for path in config.documents for one in read_documents(path)], config.held_out)
    reports = TextReports(known, config.seed, config.words)
    make = BatchMaker(reports, config.reports, config.seed, _batch_size(config))
    if not held_out:
        return _Data(make, None, known)
    tested = trials(TextReports(held_out, config.seed, config.words), range(HELD_OUT_REPORTS), HELD_OUT_QUERIES)
    return _Data(make, lambda judge: judge.success(tested, TESTED), known)


def _from_pairs(config: Config, tell: Tell) -> _Data:
    """Batches of labelled pairs; the losses are measured on the validation pairs."""
    assert config.pairs is not None
    pairs = read_text_pairs(config.pairs)
    make = PairMaker(pairs, config.seed, _batch_size(config))
    tell(f"{len(pairs)} pairs of {make.groups.an_epoch} texts")
    if not config.validation:
        return _Data(make, None)
    batches = PairMaker(read_text_pairs(config.validation), 0, BatchSize(1, config.queries, TESTED, 0))

    def measure(judge: Judge) -> dict[str, float]:
        found = [judge.losses(batches(n)) for n in range(batches.groups.an_epoch)]
        return {f"val_{name}": float(sum(one[name] for one in found)) / len(found) for name in ("loss", "accuracy")}

    return _Data(make, measure)


def _start(config: Config, run: Path, documents: Sequence[Document]) -> Checkpoint:
    """The checkpoint to start from: the config's, or a random one with a tokenizer learned from the documents."""
    hashes = HashCache(run / "hashes.json")
    if config.model:
        return checkpoints.resolve(config.model, config.revision or None, hashes, kalm.SPEC.model_types)
    path = run / "start"
    if not (path / "model.safetensors").exists():
        tokenizer = kalm_init.train_tokenizer(map(_text, documents), config.shape.vocabulary)
        kalm_init.save_new(kalm_init.new_model(config.shape, tokenizer, config.seed), tokenizer, path)
    return checkpoints.resolve(str(path), None, hashes, kalm.SPEC.model_types)


def _text(document: Document) -> str:
    """All texts of a document, for the tokenizer."""
    cells = [" ".join(row) for block in document.blocks for row in block.rows]
    return "\n".join([*(block.text for block in document.blocks), *cells, *(one.text for one in document.questions)])
