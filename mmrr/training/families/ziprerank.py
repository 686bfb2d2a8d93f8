"""Trains ZipRerank (arXiv 2605.11864): a published Qwen3-VL by LoRA on lists, or a small model on drawn pages.

A training uses the scorer's own prompt, pixels and letters, without pruning, in one forward a list. The written
ranking, its loss and the letters' loss share that forward. The vision tower is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mmrr import random_checkpoint
from mmrr.backbones.qwen3_vl import Visual
from mmrr.errors import MmrrError
from mmrr.modeling.chat import Mark
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.modeling.devices import resolve_dtype
from mmrr.modeling.plain_forward import read_batch
from mmrr.scorers import minireranker
from mmrr.scorers import ziprerank as scorer_family
from mmrr.scorers.ziprerank import LETTERS, Prepare, Scorer, choose, nearness, prompt
from mmrr.training import lora
from mmrr.training.config import ADAPTER, CHECKPOINT, ScratchMatcher
from mmrr.training.data import published_sets
from mmrr.training.data.ranked_lists import DrawnLists, ListSample, ListSize, RankedLists, read_lists
from mmrr.training.data.tower_features import ReadPage
from mmrr.training.distributed import join
from mmrr.training.families.ziprerank_aux import LOSSES, AuxiliaryLosses
from mmrr.training.families.ziprerank_config import (
    FinetuneListsConfig,
    RandomInitListsConfig,
    RankerSettings,
    config_class,
)
from mmrr.training.from_scratch import run as scratch
from mmrr.training.from_scratch.batches import batch_seed
from mmrr.training.loop import Losses, Records, RunFolder, Tell, Training, mixed
from mmrr.training.loop import train as run_loop
from mmrr.workspace.files import HashCache

__all__ = ["config_class", "train"]

Page = Image.Image | ReadPage
#: (scorer, page) -> the visual tokens of a page. Any: a page image when fine-tuning, a drawn page otherwise.
See = Callable[[Scorer, Any], Visual]


# Losses


def ranknet(logits: Tensor, best: Sequence[int]) -> Tensor:
    """Weighted RankNet over the letters' logits (n,); ``best`` lists the places in their true order, best first.

    The mean over all pairs of softplus(s_worse - s_better) / (r_better + r_worse), with ranks r from 1 (paper, stage
    1). Pairs with equal logits count too.
    """
    sorted_logits = logits[list(best)]
    ranks = torch.arange(1, len(best) + 1, device=logits.device)
    better, worse = torch.triu_indices(len(best), len(best), 1, device=logits.device)
    losses = F.softplus(sorted_logits[worse] - sorted_logits[better]) / (ranks[better] + ranks[worse])
    return losses.mean()


def soft_ranking(logits: Tensor, best: Sequence[int], gamma: float = 0.5) -> Tensor:
    """Cross-entropy of the softmax over the candidates' logits (n,) with gamma ** rank, normalized (paper, stage 2).

    ``best`` lists the relevant candidates first, then the others in the teacher's order; see ``ranked_lists.ranking``.
    """
    weights = gamma ** torch.arange(len(best), dtype=torch.float32, device=logits.device)
    return -(weights / weights.sum() * logits[list(best)].log_softmax(0)).sum()


# The model


class Ranker(nn.Module):
    """The logits of the letters and of the written ranking, with gradients. Pages are pruned as in the scorer."""

    def __init__(self, scorer: Scorer, trained: nn.Module, settings: RankerSettings, see: See) -> None:
        """``trained``: the module whose parameters are trained."""
        super().__init__()
        self.scorer, self.backbone, self.trained, self.see = scorer, scorer.backbone, trained, see
        self.settings = settings
        ends = scorer.backbone.chat.encode([("user", [Mark.SPLIT, "x", Mark.SPLIT])])
        #: The token that ends a message.
        self.end: int = ends[2][0]

    def forward(self, query: str, pages: Sequence[Page]) -> Tensor:
        """The letters' logits (n,) float32 of a list, equal to ``Scorer.logits``."""
        return self._letters(self._read(query, pages, ())[0], len(pages))

    def losses(self, batch: Sequence[ListSample]) -> Losses:
        """The ranking loss, the cross-entropy of the written ranking's tokens, and a small model's auxiliary losses.

        ``accuracy``: the share of lists whose best letter is a relevant page, or the first of the order if no page is
        known to be relevant.
        """
        settings, weights = self.settings, self.settings.auxiliary
        ranked, written, added, hits = [], [], [], []
        for shown in batch:
            answer = self.answer(shown.ranking) if settings.lm_weight else []
            extra = AuxiliaryLosses(self.backbone, shown, weights.layer, self.scorer.letters) if weights else None
            hidden = self._read(shown.query, shown.pages, answer[:-1], extra)
            logits = self._letters(hidden[0], len(shown.pages))
            if settings.stage == 1:
                ranked.append(ranknet(logits, shown.ranking))
            else:
                ranked.append(soft_ranking(logits, shown.ranking, settings.gamma))
            if answer:
                vocabulary = self.backbone.model.lm_head(hidden).float()  # at the target positions only
                target = torch.tensor(answer, device=hidden.device)
                written.append(F.cross_entropy(vocabulary, target, reduction="none"))
            if extra:
                added.append(extra.values())
            hits.append(float(int(logits.argmax()) in (shown.relevant or shown.ranking[:1])))
        found = {"ranked": torch.stack(ranked).mean()}
        total = settings.rank_weight * found["ranked"]
        if written:
            found["written"] = torch.cat(written).mean()
            total = total + settings.lm_weight * found["written"]
        if weights:
            found |= {name: torch.stack([one[name] for one in added]).mean() for name in LOSSES}
            total = total + weights.pointing * (found["pointed"] + found["gathered"] + found["chosen"])
            total = total + weights.naming * (found["named"] + found["judged"])
            total = total + weights.likeness * found["alike"]
        return {"loss": total, **found, "accuracy": torch.tensor(hits).mean().to(total.device)}

    def answer(self, best: Sequence[int]) -> list[int]:
        """Token ids behind the opening bracket: ``A] > [B] > ... [T]`` in the order ``best``, and the message's end.

        Raises MmrrError if the tokenizer joins a letter with its bracket.
        """
        text = "] > [".join(LETTERS[place] for place in best) + "]"
        ids = self.backbone.chat.encode([("user", [Mark.SPLIT, text, Mark.SPLIT])])[1]
        if ids[0] != self.scorer.letters[best[0]]:
            raise MmrrError(
                "the tokenizer of this checkpoint joins a letter and its bracket in one token; expected two tokens"
            )
        return [*ids, self.end]

    def _letters(self, hidden: Tensor, n: int) -> Tensor:
        with mixed(hidden.device, None):  # in float32, as in the scorer; the output head may be trained
            return self.backbone.head_rows(self.scorer.letters[:n]) @ hidden.float()

    def _read(
        self, query: str, pages: Sequence[Page], answer: Sequence[int], extra: AuxiliaryLosses | None = None
    ) -> Tensor:
        """Hidden states (1 + answer, D) after the final norm, from the bracket on."""
        backbone = self.backbone
        before, question, after = self.scorer.segments(query, len(pages))
        with mixed(backbone.device, None):
            visuals = [self.see(self.scorer, page) for page in pages]
        kept: list[Tensor | None] = [None] * len(visuals)
        if self.settings.keep < 1:
            words = self._words(before, question)
            near = [nearness(words, visual.tokens) for visual in visuals]
            chosen = [choose(one.detach(), self.settings.keep) for one in near]
            visuals = [visual.keep(cells) for visual, cells in zip(visuals, chosen, strict=True)]
            kept = [*chosen]
            if extra:
                extra.add_likeness(near)
        ids = [*before, *question, *after, *answer]
        sequence = backbone.pages_sequence(ids, visuals, kept)
        if extra:
            extra.locate(sequence, visuals, kept, len(before), len(sequence.embeddings) - len(answer) - 1)
        x, rotary = sequence.embeddings, backbone.rotary(sequence.positions)

        def layer(index: int, x: Tensor) -> Tensor:
            query, key, value = backbone.project(index, x, rotary)
            if extra:
                extra.add_attention(index, query, key)
            x = backbone.finish(index, x, _causal(query, key, value))
            x = sequence.add_deepstack(index, x)
            if extra:
                extra.add_states(index, x)
            return x

        for index in range(backbone.n_layers):
            if self.settings.recompute and not extra and torch.is_grad_enabled():
                x = recomputed(layer, index, x, use_reentrant=False)
            else:
                x = layer(index, x)
        hidden: Tensor = backbone.text.norm(x[len(x) - len(answer) - 1 :])
        return hidden

    def _words(self, before: Sequence[int], question: Sequence[int]) -> Tensor:
        """States (t, D) of the query's own tokens, with gradients: ``Scorer.interacting`` with interaction=hidden."""
        own = self.scorer.own(question)
        prefix = self.backbone.embed([*before, *question[: own.stop]])
        states = read_batch(self.backbone, prefix[None], self.backbone.n_layers)[0]
        hidden: Tensor = self.backbone.final_norm(states[len(before) + own.start :])
        return hidden


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of one sequence (H, n, d). Under autocast the norms return queries and keys in float32."""
    key, value = key.to(query.dtype), value.to(query.dtype)
    return F.scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, enable_gqa=True)[0]


# Runs


def train(config: FinetuneListsConfig | RandomInitListsConfig, run: Path, tell: Tell = lambda _: None) -> Records:
    """Train, yield the log's records, and leave adapter or checkpoint in the run folder.

    Raises MmrrError for lists, documents, a model or a reader that cannot be used.
    """
    if isinstance(config, FinetuneListsConfig):
        yield from _finetune(config, run, tell)
    else:
        yield from _from_random_init(config, run, tell)


def _finetune(config: FinetuneListsConfig, run: Path, tell: Tell) -> Records:
    # Before any model is loaded, so that a mistake shows early.
    file = published_sets.file_of(config.lists, config.split, config.limit, config.seed, run)
    if file.name == published_sets.PAIRS:
        raise MmrrError(f"lists = {config.lists}: found a set of pairs, expected ranked lists")
    lists = read_lists(file, config.images)
    validation = read_lists(config.validation, config.images) if config.validation else []
    group = join(config.device)
    base = lora.find_base(config.model, config.revision, HashCache(run / "hashes.json"))
    dtype = resolve_dtype(config.dtype, group.device)
    scorer = load_scorer(base, config, group.device, dtype)
    adapted = lora.adapt(scorer.backbone, base, config.rank, config.alpha, scorer.backbone.n_layers, config.seed)
    model = Ranker(scorer, adapted, config.settings(), see_image)
    tell(f"{len(lists)} lists, stage {config.stage}")
    tested = RankedLists(validation, 0, 1, config.candidates, config.shuffle)

    def evaluate() -> dict[str, float]:
        found = [model.losses(tested(n)) for n in range(len(validation))]
        return {f"val_{name}": sum(float(one[name]) for one in found) / len(found) for name in found[0]}

    adapter = lora.LoraRun(
        model=model,
        adapted=adapted,
        dtype=dtype,
        make_batch=RankedLists(lists, config.seed, config.size, config.candidates, config.shuffle),
        losses=model.losses,
        examples=len(lists),
        examples_a_batch=config.size,
        evaluate=evaluate if validation else None,
    )
    yield from lora.train_adapter(config, adapter, group, run, run / ADAPTER, tell)


def load_scorer(base: Checkpoint, config: FinetuneListsConfig, device: torch.device, dtype: torch.dtype) -> Scorer:
    """The scorer to train. Raises MmrrError if the checkpoint does not fit ZipRerank."""
    return Scorer(base, scorer_family.resolve(Prepare(config.max_side), base.config()), device, dtype)


def see_image(scorer: Scorer, page: Image.Image) -> Visual:
    """What ``mmrr precache`` stores of a page image, as ordinary tensors that a graph may use."""
    (state,) = scorer.prepare([page], [None])
    tokens, deepstack = (state[name].to(scorer.backbone.device).clone() for name in ("tokens", "deepstack"))
    rows, columns = state["grid"].tolist()
    return Visual(tokens, deepstack, (rows, columns))


def see_drawn(scorer: Scorer, page: ReadPage) -> Visual:
    """A drawn page whose features are on disk."""
    return page.visual(scorer.backbone)


# From random init


def _from_random_init(config: RandomInitListsConfig, run: Path, tell: Tell) -> Records:
    group = join()
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
        pretraining=config.pretraining,
        pretrained_layers=config.pretrained_layers,
        reports=config.reports,
    )
    known, _ = scratch.documents(settings)
    start = yield from scratch.begin(settings, run, group, known, minireranker.Prepare(band="0:1"), phrases())
    scorer = Scorer(start.checkpoint, Prepare(max_side=0), group.device, torch.float32)
    scorer.backbone.model.load_state_dict(start.scorer.backbone.model.state_dict())
    scorer.backbone.text.requires_grad_(True)
    model = Ranker(scorer, scorer.backbone.text, config.settings(), see_drawn)
    strips = round(config.strips * config.steps * config.accumulate)
    size = ListSize(config.size, config.candidates, strips, config.rows)
    seed = batch_seed(config.seed, start.checkpoint if config.start else None)
    make = DrawnLists(start.pages.features, start.pages.keys, seed, size)
    tell(f"{len(start.pages.keys)} pages; lists of up to {config.candidates}, {config.size} a batch")
    training = Training(
        model=model,
        schedule=config.schedule(),
        make_batch=make,
        losses=model.losses,
        workers=config.workers,
        accumulate=config.accumulate,
    )
    yield from run_loop(RunFolder(run), training, group)
    if group.is_main:
        scorer.backbone.model.config.ziprerank = {
            "max_side": 0,
            "window": config.candidates,
            "keep": config.keep,
            "interaction": "hidden" if config.keep < 1 else "input",
        }
        random_checkpoint.save(
            scorer.backbone.model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16, phrases()
        )
    group.close()


def phrases() -> tuple[str, ...]:
    """The fixed texts of the prompt, each one token of the byte tokenizer: the sentences and each picture's name."""
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
