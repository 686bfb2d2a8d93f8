"""Trains ZipRerank (arXiv 2605.11864, section on training): a published Qwen3-VL by LoRA on lists, or a small model.

What is trained is what ranks: the scorer's own prompt, pixels and letters, without pruning, in one forward a list. The
written ranking, its loss and the letters' share that forward. The vision tower is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mmrr import random_checkpoint
from mmrr.backbones.qwen3_vl import Visual
from mmrr.errors import MmrrError
from mmrr.modeling.chat import Mark
from mmrr.modeling.devices import resolve_dtype
from mmrr.modeling.plain_forward import read_batch
from mmrr.random_checkpoint import Shape
from mmrr.scorers import minireranker
from mmrr.scorers import ziprerank as scorer_family
from mmrr.scorers.ziprerank import LETTERS, TAUGHT, Prepare, Scorer, choose, nearness, prompt
from mmrr.training import lora
from mmrr.training.config import ADAPTER, CHECKPOINT, ModelName, ScratchMatcher
from mmrr.training.data.ranked_lists import DrawnLists, ListSample, ListSize, RankedLists, read_lists
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.distributed import join
from mmrr.training.families.ziprerank_aux import Hints
from mmrr.training.from_scratch import run as scratch
from mmrr.training.from_scratch.matching import batch_seed
from mmrr.training.loop import Losses, RunFolder, Schedule, mixed
from mmrr.training.loop import train as run_loop
from mmrr.workspace.files import HashCache

Tell = Callable[[str], None]
NO_MODEL = ModelName("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """``model`` and ``lists`` fine-tune a published model; ``documents`` and ``reader`` make a small one."""

    scorer: str
    seed: int = 0
    steps: int = 0  # of the optimiser; 0: as many as the epochs take
    lr: float | None = None  # default: 1e-4 with a model, 1e-3 from nothing
    warmup: float = 0.03  # share of the steps, before a cosine
    weight_decay: float = 0.02
    clip: float = 1.0
    accumulate: int = 1  # batches a step
    save_every: int = 50
    workers: int = 1
    size: int = 1  # lists a batch and process
    candidates: int = 20  # a list, at most
    stage: int = 2  # the loss on the letters' logits: 1, RankNet; 2, soft ranking
    gamma: float = 0.5  # of the soft ranking: from place to place
    rank_weight: float | None = None  # default: 10 in stage 1, 1 in stage 2
    lm_weight: float | None = None  # of the written ranking; default: 1 with a model, 0 from nothing
    # A published model
    model: ModelName = NO_MODEL
    revision: str = ""
    lists: Path | None = None
    images: Path | None = None  # folder that image paths count from; default: the lists file's
    validation: Path | None = None  # lists to measure on, never trained on
    evaluate_every: int = 200
    shuffle: bool = True  # the candidates of a list, anew each time it comes
    epochs: float = 1.0
    rank: int = 16
    alpha: int = 32
    recompute: bool = False  # keep no activations within a layer: less memory, about a third more time
    max_side: int = TAUGHT["max_side"]  # pixels of a page's longer side; 0: no cap
    device: str = "auto"
    dtype: str = "auto"  # bfloat16 or float32
    # From nothing
    documents: tuple[Path, ...] = ()
    held_out: float = 0.1
    pool: Path | None = None  # default: in the run's folder
    reader: Path | None = None  # the run of a trained reader
    start: Path | None = None  # a run whose weights this one goes on from, instead of spelling
    shape: Shape = field(default_factory=lambda: Shape(layers=6))
    spelling: int = 1500  # steps that teach the first layers to spell
    spelled: int = 2  # those layers; the one after them is taught to point
    reports: int = 1000
    strips: float = 0.5  # share of the steps on strips of pages
    rows: int = 4  # of cells in a strip
    keep: float = 1.0  # share of a page's tokens: those that the scorer keeps with interaction=hidden
    likeness: float = 1.0  # where some are dropped: weight of the loss on which
    pointing: float = 1.0  # weight of the losses on where heads look: pointing, gathering, choosing
    naming: float = 1.0  # weight of the naming and of the judging loss

    def __post_init__(self) -> None:
        """Raises MmrrError for keys that do not go together."""
        if bool(self.model) == bool(self.documents):
            found = "both" if self.model else "neither"
            raise MmrrError(
                f"the config has {found} of `model` and `documents`: fine-tuning names a model and lists, training "
                "from nothing documents and a reader"
            )
        for name in ("lists", "validation") if self.documents else ("pool", "reader", "start"):
            if getattr(self, name) is not None:
                needed = "model" if self.documents else "documents"
                raise MmrrError(f"the config has `{name}`, which goes with `{needed}` alone")
        if self.model and self.lists is None:
            raise MmrrError("the config names a `model` but no `lists` to fine-tune it on")
        if self.documents and not self.steps:
            raise MmrrError("training from nothing has no epochs: the config must say `steps`")
        if self.documents and self.spelled > self.shape.layers - 2:
            raise MmrrError(f"spelled = {self.spelled}: expected {self.shape.layers - 2} or less, of `shape.layers`")
        if self.stage not in (1, 2):
            raise MmrrError(f"stage = {self.stage}; expected 1 (RankNet) or 2 (soft ranking)")
        if not 2 <= self.candidates <= len(LETTERS):
            raise MmrrError(f"candidates = {self.candidates}; expected 2 to {len(LETTERS)}, a letter each")
        if not 0 < self.gamma <= 1:
            raise MmrrError(f"gamma = {self.gamma}; expected a number above 0, 1 at most")
        for name in ("size", "rows"):
            if getattr(self, name) < 1:
                raise MmrrError(f"{name} = {getattr(self, name)}; expected 1 or more")
        if not 0 < self.keep <= 1 or (self.model and self.keep < 1):
            raise MmrrError(f"keep = {self.keep}; expected a share, and 1 with a `model`: it is trained on whole pages")
        for name in ("rank_weight", "lm_weight", "naming", "likeness"):
            if (getattr(self, name) or 0) < 0:
                raise MmrrError(f"{name} = {getattr(self, name)}; expected 0 or more")
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise MmrrError(f"dtype = {self.dtype!r}; training needs auto, bfloat16 or float32")

    @property
    def result(self) -> str:
        """The folder of the run that holds what came out."""
        return ADAPTER if self.model else CHECKPOINT

    def schedule(self, steps: int) -> Schedule:
        rate = self.lr or (1e-4 if self.model else 1e-3)
        warmup, decay = round(self.warmup * steps), self.weight_decay
        return Schedule(
            steps, rate, warmup, weight_decay=decay, clip=self.clip, save_every=self.save_every, cosine=True
        )


# Losses


def ranknet(logits: Tensor, best: Sequence[int]) -> Tensor:
    """Weighted RankNet over the letters' logits (n,), ``best`` the places in their true order, best first.

    The mean over all pairs of softplus(s_worse - s_better) / (r_better + r_worse), ranks r from 1 (paper, stage 1).
    Equal logits count like any others.
    """
    sorted_logits = logits[list(best)]
    ranks = torch.arange(1, len(best) + 1, device=logits.device)
    better, worse = torch.triu_indices(len(best), len(best), 1, device=logits.device)
    losses = F.softplus(sorted_logits[worse] - sorted_logits[better]) / (ranks[better] + ranks[worse])
    return losses.mean()


def soft_ranking(logits: Tensor, best: Sequence[int], gamma: float = 0.5) -> Tensor:
    """Cross-entropy (paper, stage 2) of the softmax over the candidates' logits (n,) with gamma ** place, normalised.

    ``best`` has the relevant candidates first, then the teacher's order: see ``ranked_lists.ranking``.
    """
    weights = gamma ** torch.arange(len(best), dtype=torch.float32, device=logits.device)
    return -(weights / weights.sum() * logits[list(best)].log_softmax(0)).sum()


# The model


class Ranker(nn.Module):
    """The letters' logits, and the written ranking's, with gradients; pages are pruned as the scorer prunes them."""

    def __init__(
        self, scorer: Scorer, trained: nn.Module, config: Config, see: Callable[[Scorer, Any], Visual]
    ) -> None:
        """``trained``: the module whose parameters are trained; ``see``: a page as the language model takes it."""
        super().__init__()
        self.scorer, self.backbone, self.trained, self.config, self.see = scorer, scorer.backbone, trained, config, see
        from_nothing = not config.model
        self.lm_weight = (0.0 if from_nothing else 1.0) if config.lm_weight is None else config.lm_weight
        self.rank_weight = (10.0 if config.stage == 1 else 1.0) if config.rank_weight is None else config.rank_weight
        self.hinted = from_nothing and bool(config.pointing or config.naming or config.keep < 1)
        ends = scorer.backbone.chat.encode([("user", [Mark.SPLIT, "x", Mark.SPLIT])])
        #: The token that ends a message, and so an answer.
        self.end: int = ends[2][0]

    def forward(self, query: str, pages: Sequence[Any]) -> Tensor:
        """The letters' logits (n,) float32 of a list, as ``Scorer.logits`` has them."""
        return self._letters(self._read(query, pages, ())[0], len(pages))

    def losses(self, batch: Sequence[ListSample]) -> Losses:
        """The ranking loss, the written ranking's cross-entropy over the batch's tokens, and a small model's hints.

        ``right``: the share of lists whose best letter is a relevant page, or the order's first where none is known.
        """
        ranked, written, hints, right = [], [], [], []
        for shown in batch:
            answer = self.answer(shown.ranking) if self.lm_weight else []
            hint = Hints(self.backbone, shown, self.config.spelled, self.scorer.letters) if self.hinted else None
            hidden = self._read(shown.query, shown.pages, answer[:-1], hint)
            logits = self._letters(hidden[0], len(shown.pages))
            if self.config.stage == 1:
                ranked.append(ranknet(logits, shown.ranking))
            else:
                ranked.append(soft_ranking(logits, shown.ranking, self.config.gamma))
            if answer:
                vocabulary = self.backbone.model.lm_head(hidden).float()  # of the target positions alone
                target = torch.tensor(answer, device=hidden.device)
                written.append(F.cross_entropy(vocabulary, target, reduction="none"))
            if hint:
                hints.append((hint.pointed, hint.gathered, hint.chosen, hint.named, hint.judged, hint.alike))
            right.append(float(int(logits.argmax()) in (shown.relevant or shown.ranking[:1])))
        found = {"ranked": torch.stack(ranked).mean()}
        total = self.rank_weight * found["ranked"]
        if written:
            found["written"] = torch.cat(written).mean()
            total = total + self.lm_weight * found["written"]
        if hints:
            names = ("pointed", "gathered", "chosen", "named", "judged", "alike")
            found |= {
                name: torch.stack(each).mean() for name, each in zip(names, zip(*hints, strict=True), strict=True)
            }
            total = total + self.config.pointing * (found["pointed"] + found["gathered"] + found["chosen"])
            total = total + self.config.naming * (found["named"] + found["judged"])
            total = total + self.config.likeness * found["alike"]
        return {"loss": total, **found, "right": torch.tensor(right).mean().to(total.device)}

    def answer(self, best: Sequence[int]) -> list[int]:
        """Token ids behind the opening bracket: ``A] > [B] > ... [T]`` in this order, and the message's end."""
        text = "] > [".join(LETTERS[place] for place in best) + "]"
        ids = self.backbone.chat.encode([("user", [Mark.SPLIT, text, Mark.SPLIT])])[1]
        if ids[0] != self.scorer.letters[best[0]]:
            raise MmrrError("the tokenizer of this checkpoint joins a letter with the bracket behind it")
        return [*ids, self.end]

    def _letters(self, hidden: Tensor, n: int) -> Tensor:
        with mixed(hidden.device, None):  # float32, as in the scorer; the head may be in training
            return self.backbone.head_rows(self.scorer.letters[:n]) @ hidden.float()

    def _read(self, query: str, pages: Sequence[Any], answer: Sequence[int], hint: Hints | None = None) -> Tensor:
        """Hidden states (1 + answer, D) from the bracket on, behind the final norm."""
        backbone = self.backbone
        before, question, after = self.scorer.segments(query, len(pages))
        with mixed(backbone.device, None):
            visuals = [self.see(self.scorer, page) for page in pages]
        kept: list[Tensor | None] = [None] * len(visuals)
        if self.config.keep < 1:
            words = self._words(before, question)
            near = [nearness(words, visual.tokens) for visual in visuals]
            chosen = [choose(one.detach(), self.config.keep) for one in near]
            visuals = [visual.keep(cells) for visual, cells in zip(visuals, chosen, strict=True)]
            kept = [*chosen]
            if hint:
                hint.like(near)
        ids = [*before, *question, *after, *answer]
        sequence = backbone.pages_sequence(ids, visuals, kept)
        if hint:
            hint.place(sequence, visuals, kept, len(before), len(sequence.embeddings) - len(answer) - 1)
        x, rotary = sequence.embeddings, backbone.rotary(sequence.positions)

        def layer(index: int, x: Tensor) -> Tensor:
            query, key, value = backbone.project(index, x, rotary)
            if hint:
                hint.point(index, query, key)
            x = backbone.finish(index, x, _causal(query, key, value))
            x = sequence.add_deepstack(index, x)
            if hint:
                hint.name(index, x)
            return x

        for index in range(backbone.n_layers):
            if self.config.recompute and not hint and torch.is_grad_enabled():
                x = recomputed(layer, index, x, use_reentrant=False)
            else:
                x = layer(index, x)
        hidden: Tensor = backbone.text.norm(x[len(x) - len(answer) - 1 :])
        return hidden

    def _words(self, before: Sequence[int], question: Sequence[int]) -> Tensor:
        """``Scorer.interacting`` as ``hidden`` has it, with gradients: states (t, D) of the query's own tokens."""
        own = self.scorer.own(question)
        prefix = self.backbone.embed([*before, *question[: own.stop]])
        states = read_batch(self.backbone, prefix[None], self.backbone.n_layers)[0]
        hidden: Tensor = self.backbone.final_norm(states[len(before) + own.start :])
        return hidden


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of one sequence, (H, n, d); under autocast, norms leave queries and keys in float32."""
    key, value = key.to(query.dtype), value.to(query.dtype)
    return F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)[0]


# Runs


def train(config: Config, run: Path, tell: Tell = lambda _: None) -> Iterator[dict[str, Any]]:
    """Train, yielding the log's records, and leave adapter or checkpoint in the run's folder.

    Raises MmrrError for lists, documents, a model or a reader that cannot be used.
    """
    yield from _finetune(config, run, tell) if config.model else _from_nothing(config, run, tell)


def _finetune(config: Config, run: Path, tell: Tell) -> Iterator[dict[str, Any]]:
    assert config.lists is not None
    lists = read_lists(config.lists, config.images)  # first: a mistake is told before gigabytes are loaded
    validation = read_lists(config.validation, config.images) if config.validation else []
    crew = join(config.device)
    base = lora.find_base(config.model, config.revision, HashCache(run / "hashes.json"))
    dtype = resolve_dtype(config.dtype, crew.device)
    scorer = load_scorer(base, config, crew.device, dtype)
    adapted = lora.adapt(scorer.backbone, base, config.rank, config.alpha, scorer.backbone.n_layers, config.seed)
    model = Ranker(scorer, adapted, config, see_image)
    make = RankedLists(lists, config.seed, config.size, config.candidates, config.shuffle)
    an_epoch = len(lists) / (config.size * config.accumulate * crew.size)
    steps = config.steps or max(1, math.ceil(config.epochs * an_epoch))
    trained, every = lora.count(adapted)
    where = f"{crew.size} x {crew.device.type}" if crew.size > 1 else crew.device.type
    tell(f"{len(lists)} lists, stage {config.stage}")
    tell(f"{trained / 1e6:.1f} of {every / 1e6:.1f} million weights, {steps} steps on {where} in {str(dtype)[6:]}")
    tested = RankedLists(validation, 0, 1, config.candidates, config.shuffle)

    def evaluate() -> dict[str, float]:
        found = [model.losses(tested(n)) for n in range(len(validation))]
        return {f"val_{name}": sum(float(one[name]) for one in found) / len(found) for name in found[0]}

    yield from run_loop(
        RunFolder(run, trained_only=True),
        model,
        config.schedule(steps),
        make,
        model.losses,
        evaluate=evaluate if validation else None,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        crew=crew,
        accumulate=config.accumulate,
        autocast=torch.bfloat16 if dtype == torch.bfloat16 else None,
        log_every=1,
    )
    if crew.leads:
        lora.save(adapted, run / ADAPTER)
    crew.leave()


def load_scorer(base: Any, config: Config, device: torch.device, dtype: torch.dtype) -> Scorer:
    """The scorer that is trained. Raises MmrrError where the checkpoint does not fit ZipRerank."""
    return Scorer(base, scorer_family.resolve(Prepare(config.max_side), base.config()), device, dtype)


def see_image(scorer: Scorer, page: Any) -> Visual:
    """What ``mmrr precache`` would keep of a page image, as plain tensors that a gradient may flow around."""
    (state,) = scorer.prepare([page], [None])
    tokens, deepstack = (state[name].to(scorer.backbone.device).clone() for name in ("tokens", "deepstack"))
    rows, columns = state["grid"].tolist()
    return Visual(tokens, deepstack, (rows, columns))


def see_drawn(scorer: Scorer, page: ReadPage) -> Visual:
    """A drawn page whose features are known."""
    return page.visual(scorer.backbone)


# From nothing


def _from_nothing(config: Config, run: Path, tell: Tell) -> Iterator[dict[str, Any]]:
    crew = join()
    settings = ScratchMatcher(
        documents=config.documents,
        held_out=config.held_out,
        seed=config.seed,
        pool=config.pool,
        shape=config.shape,
        save_every=config.save_every,
        workers=config.workers,
        reader=config.reader,
        start=config.start,
        spelling=config.spelling,
        spelled=config.spelled,
        reports=config.reports,
    )
    spelled = minireranker.Prepare(band="0:1")
    known, _ = scratch.documents(settings)
    begun, speller, features, keys = yield from scratch.begin(settings, run, crew, known, spelled, phrases())
    scorer = Scorer(begun, Prepare(max_side=0), crew.device, torch.float32)
    scorer.backbone.model.load_state_dict(speller.backbone.model.state_dict())
    scorer.backbone.text.requires_grad_(True)
    model = Ranker(scorer, scorer.backbone.text, config, see_drawn)
    strips = round(config.strips * config.steps * config.accumulate)
    size = ListSize(config.size, config.candidates, strips, config.rows)
    make = DrawnLists(features, keys, batch_seed(config.seed, begun if config.start else None), size)
    tell(f"{len(keys)} pages; lists of up to {config.candidates}, {config.size} a batch")
    yield from run_loop(
        RunFolder(run),
        model,
        config.schedule(config.steps),
        make,
        model.losses,
        workers=config.workers,
        crew=crew,
        accumulate=config.accumulate,
    )
    if crew.leads:
        how = "hidden" if config.keep < 1 else "input"
        scorer.backbone.model.config.ziprerank = {
            "max_side": 0,
            "window": config.candidates,
            "keep": config.keep,
            "interaction": how,
        }
        random_checkpoint.save(
            scorer.backbone.model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16, phrases()
        )
    crew.leave()


def phrases() -> tuple[str, ...]:
    """The prompt's fixed wording, for the byte tokenizer: a token each, and one for each picture's name."""
    before, after = prompt(Prepare())["user"].replace("[split]", "").split(" {query}\n\n")
    opening, middle = before.split("2 ", 1)
    names = [f", Picture {i} is passage [{letter}]" for i, letter in enumerate(LETTERS, 1)]
    return (
        opening,
        middle[: middle.index(names[0][2:])],
        names[0][2:],
        *names[1:],
        middle[middle.index(names[1]) + len(names[1]) :],
        after[: after.index("[image]")],
    )
