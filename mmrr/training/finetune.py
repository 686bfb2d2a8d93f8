"""Fine-tunes a published Qwen3-VL by LoRA on pairs: as a reranker with miniReranker's cuts, or as an embedder.

The losses use the families' own backbone, prompt and output head, so a training optimizes the computation of ``mmrr
precache`` and ``mmrr rerank``. The vision tower is frozen and runs without gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from mmrr.backbones.qwen3_vl import Backbone, Visual
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
from mmrr.training.data import published_sets
from mmrr.training.data.pairs import ContrastiveBatch, ContrastiveBatches, JudgedPage, JudgedPages, Pair, read_pairs
from mmrr.training.distributed import ProcessGroup, join
from mmrr.training.loop import Losses, Records, Tell, mixed
from mmrr.types import Embedding
from mmrr.workspace.files import HashCache


class PageEmbedder(Protocol):
    """An embedder of any family that prunes: its embeddings have a saliency."""

    def embed_pages(self, images: Sequence[Image.Image]) -> list[Embedding]: ...


class Saliency:
    """The tokens of a page that an embedder's attention keeps, computed once a page."""

    def __init__(self, embedder: PageEmbedder, share: float) -> None:
        self.embedder, self.share = embedder, share
        self._known: dict[Path, Tensor] = {}

    def kept(self, path: Path, image: Image.Image, grid: tuple[int, int]) -> Tensor:
        """Raster indices of the kept tokens of the page image at ``path``."""
        if path not in self._known:
            (embedding,) = self.embedder.embed_pages([image])
            self._known[path] = choose(embedding, grid, self.share).indices
        return self._known[path]


class Reranker(nn.Module):
    """miniReranker's score with gradients, with band, exit and pruning on."""

    def __init__(
        self,
        scorer: minireranker.Scorer,
        adapted: nn.Module,
        exit_layer: int,
        saliency: Saliency | None,
        recompute: bool,
        whole: bool = False,
    ) -> None:
        """``adapted``: the language model with LoRA. ``whole``: the loss is over the whole vocabulary.

        Six parameters: what a score needs, and how its loss is computed.
        """
        super().__init__()
        self.whole = whole
        self.scorer, self.backbone, self.adapted, self.exit_layer = scorer, scorer.backbone, adapted, exit_layer
        self.saliency, self.recompute = saliency, recompute

    def forward(self, page: JudgedPage) -> Tensor:
        """The score z (Q,) of a page for each of its queries."""
        return self.judge(page)[0]

    def judge(self, page: JudgedPage) -> Tensor:
        """(2, Q): the score z for each query of a page, and what the other tokens add to the answer's cross-entropy.

        The second row is log(1 / P(yes or no)) over the whole vocabulary, and 0 for the loss over the two answers.
        """
        backbone = self.backbone
        visual = _visual_tokens(backbone, page.image, self.scorer.prepare_options.max_tokens)
        kept = None
        if self.saliency:
            with mixed(backbone.device, None):
                kept = self.saliency.kept(page.path, page.image, visual.grid)
        suffixes = [self.scorer.segments(query)[1] for query in page.queries]
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self._scores, visual, kept, suffixes, use_reentrant=False)
        return self._scores(visual, kept, suffixes)

    def _scores(self, visual: Visual, kept: Tensor | None, suffixes: Sequence[Sequence[int]]) -> Tensor:
        backbone = self.backbone
        sequence = backbone.page_sequence(self.scorer.before, visual, self.scorer.after, kept)
        start, end = self.scorer.band
        states = score_states(backbone, sequence, suffixes, (start, min(end, self.exit_layer)), self.exit_layer)
        with mixed(backbone.device, None):  # the two dot products are in float32, as in the scorer
            hidden = backbone.final_norm(states)
            z = self.scorer.logit(hidden)
            return torch.stack([z, self._others(hidden) if self.whole else torch.zeros_like(z)])

    def _others(self, hidden: Tensor) -> Tensor:
        """log(1 / P(yes or no)) (Q,). Cross-entropy over the vocabulary is that over the two answers plus this."""
        answers = hidden @ self.scorer.answers.T
        return self.backbone.vocabulary(hidden).logsumexp(-1) - answers.logsumexp(-1)

    def losses(self, batch: Sequence[JudgedPage]) -> Losses:
        """Cross-entropy of the answer, over yes and no or the whole vocabulary, and the accuracy at z = 0.

        A teacher's probability is a soft target: its share counts for yes, the rest for no.
        """
        z, others = torch.cat([self.judge(page) for page in batch], dim=1).float()
        y = torch.tensor([relevant for page in batch for relevant in page.relevant], device=z.device)
        targets = torch.tensor([target for page in batch for target in page.targets], device=z.device)
        loss = F.binary_cross_entropy_with_logits(z, targets) + others.mean()
        return {"loss": loss, "accuracy": ((z > 0) == y).float().mean()}


class Embedder(nn.Module):
    """Query and page vectors with gradients, one vector each."""

    def __init__(
        self,
        embedder: qwen3_vl.Embedder,
        search: qwen3_vl.Search,
        adapted: nn.Module,
        temperature: float,
        recompute: bool,
    ) -> None:
        """``adapted``: the language model with LoRA."""
        super().__init__()
        self.embedder, self.backbone, self.search, self.adapted = embedder, embedder.backbone, search, adapted
        self.temperature, self.recompute = temperature, recompute

    def page_vector(self, image: Image.Image) -> Tensor:
        """The page's vector (D,)."""
        backbone = self.backbone
        visual = _visual_tokens(backbone, image, self.embedder.prepare.max_tokens)
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self._page_vector, visual, use_reentrant=False)
        return self._page_vector(visual)

    def _page_vector(self, visual: Visual) -> Tensor:
        backbone = self.backbone
        before, after = backbone.split_at_image(self.embedder.chat(self.embedder.prepare.instruction, Mark.IMAGE))
        page = backbone.page_sequence(before, visual, after)
        vector: Tensor = self.embedder.unit(backbone.text.norm(read_last(backbone, page)))
        return vector

    def query_vectors(self, texts: Sequence[str]) -> Tensor:
        """The queries' vectors (Q, D)."""
        backbone = self.backbone
        ids, lengths = pad([self.embedder.chat(self.search.instruction, text) for text in texts])
        ids = ids.to(backbone.device)
        x = read_batch(backbone, backbone.text.embed_tokens(ids), backbone.n_layers)
        return torch.stack(
            [self.embedder.unit(backbone.text.norm(row[n - 1])) for row, n in zip(x, lengths.tolist(), strict=True)]
        )

    def losses(self, batch: ContrastiveBatch) -> Losses:
        """Cross-entropy of each query over the pages of the batch, without other pages that answer it."""
        pages = torch.stack([self.page_vector(image) for image in batch.pages])
        queries = self.query_vectors(batch.queries)
        with mixed(pages.device, None):
            logits = queries @ pages.T / self.temperature
        also_relevant = torch.zeros(logits.shape, dtype=torch.bool)
        for row, columns in zip(also_relevant, batch.also_relevant, strict=True):
            row[list(columns)] = True
        logits = logits.masked_fill(also_relevant.to(logits.device), -torch.inf)
        answers = torch.tensor(batch.answers, device=logits.device)
        accuracy = (logits.argmax(1) == answers).float().mean()
        return {"loss": F.cross_entropy(logits, answers), "accuracy": accuracy}


def _visual_tokens(backbone: Backbone, image: Image.Image, max_tokens: int) -> Visual:
    """The frozen vision tower's output for a page, as ordinary tensors that a graph with gradients may use."""
    with mixed(backbone.device, None):
        (visual,) = backbone.vision([image], max_tokens or None)
    return dataclasses.replace(visual, tokens=visual.tokens.clone(), deepstack=visual.deepstack.clone())


# Runs


def train_reranker(config: RerankerConfig, run: Path, tell: Tell = lambda _: None) -> Records:
    """Train, yield the log's records, and leave the adapter in the run folder.

    Raises MmrrError for pairs of one kind only, and for a model, an embedder or cuts that do not fit.
    """
    group, pairs, validation = _begin(config, run)
    if len({pair.target for pair in pairs}) < 2:
        found = "relevant" if pairs[0].relevant else "not relevant"
        raise MmrrError(f"{config.pairs}: all {len(pairs)} pairs are {found}; a reranker needs pairs of both kinds")
    hashes = HashCache(run / "hashes.json")
    base = lora.find_base(config.model, config.revision, hashes)
    scorer, exit_layer = load_scorer(base, config, group)
    keep = config.keep or (Prune().keep if config.embedder else 1.0)
    saliency = _saliency(config, keep, group.device, scorer.backbone.dtype, hashes) if keep < 1 else None
    adapted = lora.adapt(scorer.backbone, base, config.rank, config.alpha, exit_layer, config.seed)
    model = Reranker(scorer, adapted, exit_layer, saliency, config.recompute, config.loss == "vocabulary")
    make = JudgedPages(pairs, config.seed, config.pages, config.queries)
    cuts = f"band {scorer.prepare_options.band}, exit {exit_layer}, {keep:.0%} of the tokens"
    tell(f"{len(pairs)} pairs on {len(make.groups.by_page)} pages; {cuts}")
    tested = JudgedPages(validation, 0, 1, config.queries)

    def evaluate() -> dict[str, float]:
        found = [(model.losses([page]), len(page.queries)) for n in range(tested.groups.an_epoch) for page in tested(n)]
        n_pairs = sum(n for _, n in found)
        return {
            f"val_{name}": sum(float(losses[name]) * n for losses, n in found) / n_pairs
            for name in ("loss", "accuracy")
        }

    adapter = lora.LoraRun(
        model=model,
        adapted=adapted,
        dtype=scorer.backbone.dtype,
        make_batch=make,
        losses=model.losses,
        examples=make.groups.an_epoch,
        examples_a_batch=config.pages,
        evaluate=evaluate if validation else None,
    )
    yield from lora.train_adapter(config, adapter, group, run, run / ADAPTER, tell)


def train_embedder(config: EmbedderConfig, run: Path, tell: Tell = lambda _: None) -> Records:
    """Train, yield the log's records, and leave the adapter in the run folder.

    Raises MmrrError for pairs without a relevant one or of one page only, and for a model that does not fit.
    """
    group, pairs, validation = _begin(config, run)
    make = ContrastiveBatches(pairs, config.seed, config.queries, config.negatives)
    n_pages = len({pair.image for pair in pairs})
    if not make.positives or n_pages < 2:
        raise MmrrError(
            f"{config.pairs} has {len(make.positives)} relevant pairs and {n_pages} pages; an embedder needs at least "
            "1 relevant pair and 2 pages"
        )
    base = lora.find_base(config.model, config.revision, HashCache(run / "hashes.json"))
    embedder, search = load_embedder(base, config, group)
    adapted = lora.adapt(embedder.backbone, base, config.rank, config.alpha, embedder.backbone.n_layers, config.seed)
    model = Embedder(embedder, search, adapted, config.temperature, config.recompute)
    hard = sum(not pair.relevant for pair in pairs)
    tell(f"{len(make.positives)} queries with their page, {hard} hard negatives")
    tested = ContrastiveBatches(validation, 0, config.queries, config.negatives)

    def evaluate() -> dict[str, float]:
        rounds = math.ceil(tested.an_epoch / config.queries)
        found = [model.losses(tested(n)) for n in range(rounds)]
        return {f"val_{name}": sum(float(losses[name]) for losses in found) / rounds for name in ("loss", "accuracy")}

    adapter = lora.LoraRun(
        model=model,
        adapted=adapted,
        dtype=embedder.backbone.dtype,
        make_batch=make,
        losses=model.losses,
        examples=make.an_epoch,
        examples_a_batch=config.queries,
        evaluate=evaluate if tested.positives else None,
    )
    yield from lora.train_adapter(config, adapter, group, run, run / ADAPTER, tell)


def load_scorer(base: Checkpoint, config: RerankerConfig, group: ProcessGroup) -> tuple[minireranker.Scorer, int]:
    """The scorer with the config's cuts, and its exit layer.

    Raises MmrrError if the cuts do not fit the model.
    """
    prepare = minireranker.Prepare(band=config.band, max_tokens=config.max_tokens)
    if config.instruction:
        prepare = dataclasses.replace(prepare, instruction=config.instruction)
    prepare = minireranker.resolve(prepare, base.config())
    scorer = minireranker.Scorer(base, prepare, group.device, resolve_dtype(config.dtype, group.device))
    start, end = scorer.band
    exit_layer = config.exit or end
    if not start < exit_layer <= scorer.backbone.n_layers:
        expected = f"{start + 1} to {scorer.backbone.n_layers}"
        raise MmrrError(f"exit = {exit_layer} does not fit band {prepare.band}; expected {expected}")
    return scorer, exit_layer


def load_embedder(
    base: Checkpoint, config: EmbedderConfig, group: ProcessGroup
) -> tuple[qwen3_vl.Embedder, qwen3_vl.Search]:
    """The embedder with the config's instructions, and its search options.

    Raises MmrrError for a late-interaction checkpoint: it has no single vector to train.
    """
    name = families.embedder(base.config())
    if name != "qwen3_vl":
        raise MmrrError(f"{base.id} is a {name} model; mmrr train embedder fine-tunes embedders with one vector a page")
    prepare = qwen3_vl.Prepare(max_tokens=config.max_tokens)
    if config.instruction:
        prepare = dataclasses.replace(prepare, instruction=config.instruction)
    search = qwen3_vl.Search(config.query_instruction) if config.query_instruction else qwen3_vl.Search()
    return qwen3_vl.Embedder(base, prepare, group.device, resolve_dtype(config.dtype, group.device)), search


def _saliency(
    config: RerankerConfig, keep: float, device: torch.device, dtype: torch.dtype, hashes: HashCache
) -> Saliency:
    """The pruning of ``mmrr precache`` with the config's embedder."""
    pruner = resolve(config.embedder, config.embedder_revision or None, hashes, families.names("embedders"))
    module = families.load("embedders", families.embedder(pruner.config()))
    prepare = families.make_options(module.Prepare, {"max_tokens": config.max_tokens})
    return Saliency(module.load(pruner, prepare, device, dtype), keep)


def _begin(config: FinetuneConfig, run: Path) -> tuple[ProcessGroup, list[Pair], list[Pair]]:
    """The process group, and the pairs of training and validation. Pairs are read before any model is loaded."""
    file = published_sets.file_of(config.pairs, config.split, config.limit, config.seed, run)
    if file.name == published_sets.LISTS:
        raise MmrrError(f"pairs = {config.pairs}: found a set of ranked lists, expected pairs; ZipRerank takes lists")
    pairs = read_pairs(file, config.images)
    validation = read_pairs(config.validation, config.images) if config.validation else []
    return join(config.device), pairs, validation
