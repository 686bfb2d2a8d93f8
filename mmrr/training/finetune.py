"""Fine-tunes a published Qwen3-VL by LoRA on pairs: as a reranker under miniReranker's cuts, or as an embedder.

The losses run through the families' own backbone, wording and head, so that what is learnt is what ``mmrr precache``
and ``mmrr rerank`` compute. The vision tower is frozen and runs without gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mmrr.config import Prune
from mmrr.embedders import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.modeling.chat import Mark
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.modeling.devices import resolve_dtype
from mmrr.modeling.plain_forward import pad, read_batch, read_last, score_states
from mmrr.modeling.saliency import choose
from mmrr.scorers import minireranker
from mmrr.training import lora
from mmrr.training.config import ADAPTER, EmbedderConfig, FinetuneConfig, RerankerConfig
from mmrr.training.data.pairs import ContrastiveBatch, ContrastiveBatches, JudgedPage, JudgedPages, Pair, read_pairs
from mmrr.training.distributed import Crew, join
from mmrr.training.loop import Losses, RunFolder, mixed, train
from mmrr.workspace.files import HashCache

Tell = Callable[[str], None]


class Saliency:
    """Which tokens of a page an embedder keeps; asked once a page."""

    def __init__(self, embedder: Any, share: float) -> None:
        self.embedder, self.share = embedder, share
        self._known: dict[Path, Tensor] = {}

    def kept(self, path: Path, image: Image.Image, grid: tuple[int, int]) -> Tensor:
        if path not in self._known:
            (embedding,) = self.embedder.embed_pages([image])
            self._known[path] = choose(embedding, grid, self.share).indices
        return self._known[path]


class Reranker(nn.Module):
    """miniReranker's score with gradients. Every cut is on: band, exit, pruning."""

    def __init__(
        self, scorer: Any, adapted: nn.Module, exit_layer: int, saliency: Saliency | None, recompute: bool
    ) -> None:
        super().__init__()
        self.scorer, self.backbone, self.adapted, self.exit_layer = scorer, scorer.backbone, adapted, exit_layer
        self.saliency, self.recompute = saliency, recompute

    def forward(self, page: JudgedPage) -> Tensor:
        """z (Q,) of a page's queries."""
        backbone = self.backbone
        visual = _see(backbone, page.image, self.scorer.prepare_options.max_tokens)
        kept = None
        if self.saliency:
            with mixed(backbone.device, None):
                kept = self.saliency.kept(page.path, page.image, visual.grid)
        suffixes = [self.scorer.segments(query)[1] for query in page.queries]
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self._scores, visual, kept, suffixes, use_reentrant=False)
        return self._scores(visual, kept, suffixes)

    def _scores(self, visual: Any, kept: Tensor | None, suffixes: Sequence[Sequence[int]]) -> Tensor:
        backbone = self.backbone
        sequence = backbone.page_sequence(self.scorer.before, visual, self.scorer.after, kept)
        start, end = self.scorer.band
        states = score_states(backbone, sequence, suffixes, (start, min(end, self.exit_layer)), self.exit_layer)
        with mixed(backbone.device, None):  # the two dot products are float32, as in the scorer
            return self.scorer.logit(backbone.final_norm(states))

    def losses(self, batch: Sequence[JudgedPage]) -> Losses:
        """Cross-entropy of yes and no."""
        z = torch.cat([self(page) for page in batch])
        y = torch.tensor([relevant for page in batch for relevant in page.relevant], device=z.device)
        loss = F.binary_cross_entropy_with_logits(z, y.float())
        return {"loss": loss, "right": ((z > 0) == y).float().mean()}


class Embedder(nn.Module):
    """Query and page vectors with gradients."""

    def __init__(self, embedder: Any, search: Any, adapted: nn.Module, temperature: float, recompute: bool) -> None:
        super().__init__()
        self.embedder, self.backbone, self.search, self.adapted = embedder, embedder.backbone, search, adapted
        self.temperature, self.recompute = temperature, recompute

    def page_vector(self, image: Image.Image) -> Tensor:
        """The page's vector (D,)."""
        backbone = self.backbone
        visual = _see(backbone, image, self.embedder.prepare.max_tokens)
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self._page_vector, visual, use_reentrant=False)
        return self._page_vector(visual)

    def _page_vector(self, visual: Any) -> Tensor:
        backbone = self.backbone
        before, after = backbone.split_at_image(self.embedder.chat(self.embedder.prepare.instruction, Mark.IMAGE))
        page = backbone.page_sequence(before, visual, after)
        vector: Tensor = self.embedder.unit(backbone.text.norm(read_last(backbone, page)))
        return vector

    def query_vectors(self, texts: Sequence[str]) -> Tensor:
        """Queries' vectors (Q, D)."""
        backbone = self.backbone
        ids, lengths = pad([self.embedder.chat(self.search.instruction, text) for text in texts])
        ids = ids.to(backbone.device)
        x = read_batch(backbone, backbone.text.embed_tokens(ids), backbone.n_layers)
        return torch.stack(
            [self.embedder.unit(backbone.text.norm(row[n - 1])) for row, n in zip(x, lengths.tolist(), strict=True)]
        )

    def losses(self, batch: ContrastiveBatch) -> Losses:
        """Cross-entropy of each query's page among all pages of the batch, but those that answer it too."""
        pages = torch.stack([self.page_vector(image) for image in batch.pages])
        queries = self.query_vectors(batch.queries)
        with mixed(pages.device, None):
            logits = queries @ pages.T / self.temperature
        excused = torch.zeros(logits.shape, dtype=torch.bool)
        for row, columns in zip(excused, batch.also_relevant, strict=True):
            row[list(columns)] = True
        logits = logits.masked_fill(excused.to(logits.device), -torch.inf)
        answers = torch.tensor(batch.answers, device=logits.device)
        return {"loss": F.cross_entropy(logits, answers), "right": (logits.argmax(1) == answers).float().mean()}


def _see(backbone: Any, image: Image.Image, max_tokens: int) -> Any:
    """What the frozen vision tower makes of a page, as plain tensors that a gradient may flow around."""
    with mixed(backbone.device, None):
        (visual,) = backbone.vision([image], max_tokens or None)
    return dataclasses.replace(visual, tokens=visual.tokens.clone(), deepstack=visual.deepstack.clone())


# Runs


def train_reranker(config: RerankerConfig, run: Path, tell: Tell = lambda _: None) -> Iterator[dict[str, Any]]:
    """Train, yielding the log's records, and leave the adapter in the run's folder."""
    crew, pairs, validation = _begin(config)
    if len({pair.relevant for pair in pairs}) < 2:
        found = "relevant" if pairs[0].relevant else "not relevant"
        raise MmrrError(f"{config.pairs}: all {len(pairs)} pairs are {found}; a reranker learns from both")
    hashes = HashCache(run / "hashes.json")
    base = lora.find_base(config.model, config.revision, hashes)
    scorer, exit_layer = load_scorer(base, config, crew)
    saliency = None
    keep = config.keep or (Prune().keep if config.embedder else 1.0)
    if keep < 1:
        pruner = resolve(config.embedder, config.embedder_revision or None, hashes, families.names("embedders"))
        module = families.load("embedders", families.embedder(pruner.config()))
        prepare = families.make_options(module.Prepare, {"max_tokens": config.max_tokens})
        embedder = module.load(pruner, prepare, crew.device, scorer.backbone.dtype)
        saliency = Saliency(embedder, keep)
    adapted = lora.adapt(scorer.backbone, base, config.rank, config.alpha, exit_layer, config.seed)
    model = Reranker(scorer, adapted, exit_layer, saliency, config.recompute)
    make = JudgedPages(pairs, config.seed, config.pages, config.queries)
    cuts = f"band {scorer.prepare_options.band}, exit {exit_layer}, {keep:.0%} of the tokens"
    tell(f"{len(pairs)} pairs on {len(make.groups.by_page)} pages; {cuts}")
    tested = JudgedPages(validation, 0, 1, config.queries)

    def evaluate() -> dict[str, float]:
        found = [(model(page), page.relevant) for n in range(tested.groups.an_epoch) for page in tested(n)]
        z = torch.cat([scores for scores, _ in found]).float()
        y = torch.tensor([relevant for _, judged in found for relevant in judged], device=z.device)
        loss = F.binary_cross_entropy_with_logits(z, y.float())
        return {"val_loss": float(loss), "val_right": float(((z > 0) == y).float().mean())}

    per_step = config.pages * config.accumulate * crew.size
    yield from _loop(
        config, run, crew, model, make, make.groups.an_epoch / per_step, evaluate if validation else None, tell
    )


def train_embedder(config: EmbedderConfig, run: Path, tell: Tell = lambda _: None) -> Iterator[dict[str, Any]]:
    """Train, yielding the log's records, and leave the adapter in the run's folder."""
    crew, pairs, validation = _begin(config)
    make = ContrastiveBatches(pairs, config.seed, config.queries, config.negatives)
    if not make.positives or len({pair.image for pair in pairs}) < 2:
        raise MmrrError(f"{config.pairs}: an embedder learns from relevant pairs among two pages or more; found none")
    base = lora.find_base(config.model, config.revision, HashCache(run / "hashes.json"))
    embedder, search = load_embedder(base, config, crew)
    adapted = lora.adapt(embedder.backbone, base, config.rank, config.alpha, embedder.backbone.n_layers, config.seed)
    model = Embedder(embedder, search, adapted, config.temperature, config.recompute)
    hard = sum(not pair.relevant for pair in pairs)
    tell(f"{len(make.positives)} queries with their page, {hard} hard negatives")
    tested = ContrastiveBatches(validation, 0, config.queries, config.negatives)

    def evaluate() -> dict[str, float]:
        rounds = math.ceil(tested.an_epoch / config.queries)
        found = [model.losses(tested(n)) for n in range(rounds)]
        return {f"val_{name}": sum(float(losses[name]) for losses in found) / rounds for name in ("loss", "right")}

    per_step = config.queries * config.accumulate * crew.size
    test = evaluate if tested.positives else None
    yield from _loop(config, run, crew, model, make, make.an_epoch / per_step, test, tell)


def load_scorer(base: Checkpoint, config: RerankerConfig, crew: Crew) -> tuple[Any, int]:
    """The scorer with the config's cuts, and its exit layer. Raises MmrrError where they do not fit the model."""
    options: dict[str, Any] = {"band": config.band, "max_tokens": config.max_tokens}
    if config.instruction:
        options["instruction"] = config.instruction
    prepare = minireranker.resolve(minireranker.Prepare(**options), base.config())
    scorer = minireranker.load(base, prepare, crew.device, _dtype(config, crew))
    start, end = scorer.band
    exit_layer = config.exit or end
    if not start < exit_layer <= scorer.backbone.n_layers:
        expected = f"{start + 1} to {scorer.backbone.n_layers}"
        raise MmrrError(f"exit = {exit_layer} does not fit band {prepare.band}; expected {expected}")
    return scorer, exit_layer


def load_embedder(base: Checkpoint, config: EmbedderConfig, crew: Crew) -> tuple[Any, Any]:
    """The embedder with the config's wording, and its ``Search`` options.

    Raises MmrrError for a checkpoint with late interaction: it has no single vector to train.
    """
    name = families.embedder(base.config())
    if name != "qwen3_vl":
        raise MmrrError(f"{base.id} is a {name} model; mmrr train embedder fine-tunes embedders of one vector a page")
    options: dict[str, Any] = {"max_tokens": config.max_tokens}
    if config.instruction:
        options["instruction"] = config.instruction
    search = qwen3_vl.Search(config.query_instruction) if config.query_instruction else qwen3_vl.Search()
    return qwen3_vl.load(base, qwen3_vl.Prepare(**options), crew.device, _dtype(config, crew)), search


def _dtype(config: FinetuneConfig, crew: Crew) -> torch.dtype:
    return resolve_dtype(config.dtype, crew.device)


def _begin(config: FinetuneConfig) -> tuple[Crew, list[Pair], list[Pair]]:
    """What needs no model comes first: a mistake in the pairs is told before gigabytes are loaded."""
    pairs = read_pairs(config.pairs, config.images)
    validation = read_pairs(config.validation, config.images) if config.validation else []
    return join(config.device), pairs, validation


def _loop(
    config: FinetuneConfig,
    run: Path,
    crew: Crew,
    model: Any,
    make: Callable[[int], Any],
    steps_an_epoch: float,
    evaluate: Callable[[], dict[str, float]] | None,
    tell: Tell,
) -> Iterator[dict[str, Any]]:
    dtype = model.backbone.dtype
    trained, every = lora.count(model.adapted)
    steps = config.steps or max(1, math.ceil(config.epochs * steps_an_epoch))
    where = f"{crew.size} x {crew.device.type}" if crew.size > 1 else crew.device.type
    tell(f"{trained / 1e6:.1f} of {every / 1e6:.1f} million weights, {steps} steps on {where} in {str(dtype)[6:]}")
    yield from train(
        RunFolder(run, trained_only=True),
        model,
        config.schedule(steps),
        make,
        model.losses,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        crew=crew,
        accumulate=config.accumulate,
        autocast=torch.bfloat16 if dtype == torch.bfloat16 else None,
        log_every=1,
    )
    if crew.leads:
        lora.save(model.adapted, run / ADAPTER)
    crew.leave()
