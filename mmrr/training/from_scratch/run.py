"""Trains a small Qwen3-VL from random init: reader, then embedder, then reranker. Each run writes a checkpoint.

The reader's vision tower learns to read and is then frozen. The language models of embedder and reranker are trained on
its features of drawn pages. This module knows the order of the stages; ``reader`` and ``matching`` define the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrr import random_checkpoint
from mmrr.backbones._qwen3_vl_loading import load_model
from mmrr.embedders import colqwen3, qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints, families
from mmrr.modeling.checkpoint_files import projection_of, tensor_shapes
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers import minireranker
from mmrr.training.config import (
    CHECKPOINT,
    ScratchConfig,
    ScratchEmbedder,
    ScratchMatcher,
    ScratchReader,
    ScratchReranker,
)
from mmrr.training.data.cell_targets import N_HASHES
from mmrr.training.data.online_negatives import Miner
from mmrr.training.data.tower_features import Keys, TowerFeatures, make_all
from mmrr.training.distributed import ProcessGroup, join, placed
from mmrr.training.from_scratch.batches import Batch, BatchMaker, BatchPlan, batch_seed
from mmrr.training.from_scratch.matching import Contrast, Judge, JudgeOptions, Pretraining
from mmrr.training.from_scratch.reader import CropMaker, Reader
from mmrr.training.loop import Losses, Record, Records, RunFolder, Schedule, Training, mixed, train
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.workspace.files import HashCache, checksum_file
from mmrr.workspace.tensor_files import save_tensors

T = TypeVar("T")
#: A stage before the training: yields records of its progress and returns its result.
Stage = Generator[Record, None, T]

#: (columns, rows, crops a batch) in cells. Wider crops teach words and lines, larger ones attention over a page.
CROPS = ((8, 8, 16), (8, 8, 16), (8, 8, 16), (16, 8, 8), (16, 16, 4))
HEADS = "heads.safetensors"
#: Prefix of the vision tower's weights that prepare its early features for the language model.
DEEPSTACK = "deepstack_merger_list."
#: Held-out reports that the reader is measured on; held-out reports and batches for embedder and reranker.
HELD_OUT_REPORTS, MATCHED_REPORTS, HELD_OUT_BATCHES = 30, 12, 16


@dataclass(frozen=True, slots=True)
class DrawnPages:
    """Pages of a pool: the tower's features on disk, and (report, page) of each page in order."""

    features: TowerFeatures
    keys: Keys


@dataclass(frozen=True, slots=True)
class Start:
    """What embedder and reranker start from."""

    checkpoint: Checkpoint  # the weights that the run began with
    scorer: minireranker.Scorer  # on the device, with pre-trained layers
    pages: DrawnPages  # to train on


def train_reader(config: ScratchReader, run: Path) -> Records:
    """Train a vision tower to read. The language model of the checkpoint stays untrained.

    With ``reader`` in the config the run continues from that run's weights. Raises MmrrError for documents that cannot
    be read, for a reader of another shape, and for ``keep_heads`` without ``reader``.
    """
    if config.keep_heads and not config.reader:
        raise MmrrError("keep_heads = true, but the config names no `reader`; expected the run folder of a reader")
    group = join()
    known, held_out = documents(config)
    model = random_checkpoint.new_model(config.shape, config.seed)
    reader = Reader(model.model.visual, config.shape.hidden, config.hash_weight)
    if config.reader:
        _load_tower(model, config.reader)
        reader.load_state_dict(load_file(config.reader / HEADS), strict=False)
        if config.keep_heads:
            reader.freeze_heads()
    reader.to(group.device)
    make = CropMaker(_pool(config, run, known), config.reports, config.seed, CROPS, letters=config.letters)
    evaluate = None
    if held_out:
        crops = CropMaker(_held_out_pool(config, run, held_out), HELD_OUT_REPORTS, config.seed, CROPS[:1])
        test = [crops(i) for i in range(5)]

        def evaluate() -> dict[str, float]:
            return reader.scores(test)

    training = Training(
        model=reader,
        schedule=config.schedule(),
        make_batch=make,
        losses=reader.losses,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
    )
    yield from train(RunFolder(run), training, group)
    if group.is_main:
        heads = {name: value for name, value in reader.state_dict().items() if not name.startswith("tower.")}
        save_tensors(heads, run / HEADS)
        random_checkpoint.save(model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16)


def train_embedder(config: ScratchEmbedder, run: Path) -> Records:
    """Pre-train the first layers, then train by contrast, on a trained reader's features.

    Raises MmrrError without a trained reader, for ``mined`` or ``attention_distillation`` without ``embedder``, and for
    ``embedder`` without either.
    """
    _check_embedder_key(config)
    group = join()
    known, held_out = documents(config)
    start = yield from begin(config, run, group, known, minireranker.Prepare(band="0:1"))
    embedder = colqwen3.Embedder(start.checkpoint, colqwen3.Prepare(), group.device, torch.float32)
    embedder.backbone.model.load_state_dict(start.scorer.backbone.model.state_dict())
    embedder.backbone.text.requires_grad_(True)
    embedder.projection.requires_grad_(True)
    weights = config.pointing, config.whole, config.attention_distillation
    contrast = Contrast(embedder, colqwen3.Search(), *weights, fused=config.fused).to(group.device)
    pages, unseen = start.pages, (yield from _unseen(config, run, group, held_out))
    if config.embedder:
        pages, unseen = yield from _with_embeddings(config, run, group, pages, unseen)
    yield from train(RunFolder(run), _matching(config, run, group, start, pages, unseen)(contrast), group)
    if group.is_main:
        random_checkpoint.save(
            embedder.backbone.model,
            run / CHECKPOINT,
            config.shape.max_tokens,
            torch.bfloat16,
            projection=embedder.projection.weight,
            temperature=contrast.temperature.neg().exp().item(),
        )


def train_reranker(config: ScratchReranker, run: Path) -> Records:
    """Pre-train the first layers, then train yes/no judgements with band, exit and pruning on.

    Raises MmrrError without a trained reader, for ``mined`` without ``embedder`` or ``ranking``, and for a pointing
    layer outside the band.
    """
    shape = {"text_config": {"num_hidden_layers": config.shape.layers}}
    prepare = minireranker.resolve(minireranker.Prepare(band=config.band), shape)
    first, end = map(int, prepare.band.split(":"))
    layer = config.pretrained_layers
    if config.pointing and not first <= layer < min(end, config.exit):
        raise MmrrError(
            f"pretrained_layers = {layer}: the pointing loss is taken in layer {layer}, which must lie in the band "
            f"{prepare.band} and below the exit {config.exit}"
        )
    _check_embedder_key(config)
    group = join()
    known, held_out = documents(config)
    start = yield from begin(config, run, group, known, prepare)
    pages, unseen = start.pages, (yield from _unseen(config, run, group, held_out))
    keep = 1.0
    if config.embedder and (config.keep < 1 or config.mined):
        keep = config.keep
        pages, unseen = yield from _with_embeddings(config, run, group, pages, unseen)
    scorer = start.scorer
    scorer.backbone.text.requires_grad_(True)
    options = JudgeOptions(scorer.band, config.exit, keep, config.pointing, layer, config.ranking)
    judge = Judge(scorer, options)
    yield from train(RunFolder(run), _matching(config, run, group, start, pages, unseen)(judge), group)
    if group.is_main:
        random_checkpoint.save(scorer.backbone.model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16)


def documents(config: ScratchConfig) -> tuple[list[Document], list[Document]]:
    """The documents to train on, and the held-out ones."""
    return split([one for path in config.documents for one in read_documents(path)], config.held_out)


def _pool(config: ScratchConfig, run: Path, known: list[Document]) -> PagePool:
    return PagePool(config.pool or run / "pool", known, config.seed)


def _held_out_pool(config: ScratchConfig, run: Path, held_out: list[Document]) -> PagePool:
    return PagePool((config.pool or run / "pool") / "held-out", held_out, config.seed)


def begin(
    config: ScratchMatcher,
    run: Path,
    group: ProcessGroup,
    known: list[Document],
    prepare: minireranker.Prepare,
    phrases: Sequence[str] = (),
) -> Stage[Start]:
    """Prepare the training of a language model: checkpoint, frozen tower, features of the pages, pre-training.

    ``known``: the documents to draw. ``phrases``: texts that the tokenizer of a new model knows in addition to the
    usual ones.
    """
    path = _start_checkpoint(config, run, phrases)
    checkpoint = checkpoints.resolve(str(path), None, HashCache(run / "hashes.json"))
    has_projection = any(map(projection_of, tensor_shapes(checkpoint.id, path)))  # that of an embedder is read apart
    width = checkpoint.config()["text_config"]["hidden_size"]
    projection = colqwen3.read_projection(checkpoint, width) if has_projection else None
    model = load_model(path, None, torch.float32, needs_head=True, projection=projection)
    scorer = minireranker.Scorer(checkpoint, prepare, group.device, torch.float32, model)
    _load_tower(scorer.backbone.model, _reader(config))  # the features come from it, whatever tower `start` has
    pages = yield from _features(config, run, group, _pool(config, run, known), config.reports)
    if config.start is None:
        yield from _pretrain(config, run, group, scorer, pages)
    return Start(checkpoint, scorer, pages)


def _start_checkpoint(config: ScratchMatcher, run: Path, phrases: Sequence[str]) -> Path:
    """The checkpoint to start from: that of the run ``start``, or a random one with the reader's tower, in float32."""
    if config.start is not None:
        if not (config.start / CHECKPOINT / "model.safetensors").exists():
            raise MmrrError(f"no trained model at {config.start}; `start` is the run folder of a finished run")
        return config.start / CHECKPOINT
    path = run / "start"
    if (path / "model.safetensors").exists():
        return path
    model = random_checkpoint.new_model(config.shape, config.seed, phrases=phrases)
    _load_tower(model, _reader(config))
    projection = nn.Linear(config.shape.hidden, config.dim).weight if isinstance(config, ScratchEmbedder) else None
    random_checkpoint.save(model, path, config.shape.max_tokens, torch.float32, phrases, projection)
    return path


def _reader(config: ScratchConfig) -> Path:
    if config.reader is None:
        raise MmrrError("the config names no `reader`; run mmrr train reader first and name its run folder")
    return config.reader


def _load_tower(model: Any, reader: Path) -> None:
    """Load a reader's vision tower into ``model``, a Qwen3-VL of transformers. Raises MmrrError if it does not fit."""
    file = reader / CHECKPOINT / "model.safetensors"
    if not file.exists() or not (reader / HEADS).exists():
        raise MmrrError(f"no trained reader at {reader}; run mmrr train reader first and name its run folder")
    prefix = "model.visual."
    tower = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
    own = model.model.visual.state_dict()
    if not any(name.startswith(DEEPSTACK) for name in own):  # a shape may have no DeepStack levels
        tower = {name: value for name, value in tower.items() if not name.startswith(DEEPSTACK)}
    for name in tower.keys() & own.keys():
        if "merger" in name and ".linear_fc2." in name:
            tower[name] = _widened(tower[name], own[name].shape[0])
    try:
        model.model.visual.load_state_dict(tower)
    except RuntimeError as error:
        raise MmrrError(f"the vision tower of {reader} has another shape than this config's") from error


def _widened(rows: Tensor, n: int) -> Tensor:
    """``rows`` padded with zeros to ``n``: a wider language model gets the reader's tokens followed by zeros."""
    return torch.cat([rows, rows.new_zeros(max(0, n - len(rows)), *rows.shape[1:])])


def _features(config: ScratchConfig, run: Path, group: ProcessGroup, pool: PagePool, reports: int) -> Stage[DrawnPages]:
    """The reader's features of the first ``reports`` reports. All models trained on them share one width."""
    path = _reader(config) / CHECKPOINT

    def tower() -> Any:
        reader = checkpoints.resolve(str(path), None, HashCache(run / "hashes.json"))
        return qwen3_vl.Embedder(reader, qwen3_vl.Prepare(), group.device, torch.float32).backbone

    features = TowerFeatures(pool.folder / f"features-{checksum_file(path / 'model.safetensors')[:12]}", pool)
    keys = yield from make_all(features, reports, tower, group.device)
    return DrawnPages(features, keys)


def _unseen(
    config: ScratchConfig, run: Path, group: ProcessGroup, held_out: list[Document]
) -> Stage[DrawnPages | None]:
    """Pages of held-out documents; None if no document is held out."""
    if not held_out:
        return None
    return (yield from _features(config, run, group, _held_out_pool(config, run, held_out), MATCHED_REPORTS))


def _check_embedder_key(config: ScratchMatcher) -> None:
    """Raises MmrrError if the key ``embedder`` is missing or has no use."""
    if config.mined and not config.embedder:
        raise MmrrError(f"mined = {config.mined}, but the config names no `embedder` to mine with")
    if isinstance(config, ScratchReranker) and config.mined and not config.ranking:
        raise MmrrError(f"mined = {config.mined}, but ranking = 0; mined pages need `ranking` above 0")
    if isinstance(config, ScratchEmbedder):
        weight = config.attention_distillation
        if weight and not config.embedder:
            raise MmrrError(f"attention_distillation = {weight}, but the config names no `embedder` to distill from")
        if config.embedder and not (config.mined or weight):
            raise MmrrError(
                "an embedder's `embedder` needs `mined` or `attention_distillation`, and both are 0; set one, or "
                "remove `embedder`"
            )


def _with_embeddings(
    config: ScratchMatcher, run: Path, group: ProcessGroup, pages: DrawnPages, unseen: DrawnPages | None
) -> Stage[tuple[DrawnPages, DrawnPages | None]]:
    """Both sets of pages with the vectors and the saliency of ``embedder``."""
    pages = yield from _embeddings(config, run, group, pages)
    if unseen:
        unseen = yield from _embeddings(config, run, group, unseen)
    return pages, unseen


def _embeddings(config: ScratchMatcher, run: Path, group: ProcessGroup, pages: DrawnPages) -> Stage[DrawnPages]:
    embedder, _, name = _embedder(config, run, group.device)
    embedded = TowerFeatures(pages.features.folder, pages.features.pool, name)
    for done, key in enumerate(pages.keys, 1):
        with mixed(embedder.backbone.device, torch.bfloat16):
            embedded.embed(embedder, *key)
        if done % 16 == 0 or done == len(pages.keys):
            yield {"stage": "embeddings", "step": done, "steps": len(pages.keys), "lr": 0.0}
    return DrawnPages(embedded, pages.keys)


def _embedder(config: ScratchMatcher, run: Path, device: torch.device) -> tuple[Any, Any, str]:
    """The trained embedder and its search options (Any: of its family), and a name made of its weights' checksum."""
    assert config.embedder is not None
    path = config.embedder / CHECKPOINT
    if not (path / "model.safetensors").exists():
        raise MmrrError(f"no trained embedder at {config.embedder}; expected the run folder of mmrr train embedder")
    checkpoint = checkpoints.resolve(str(path), None, HashCache(run / "hashes.json"))
    family = families.load("embedders", families.embedder(checkpoint.config()))
    embedder = family.load(checkpoint, family.Prepare(), device, torch.float32)
    return embedder, family.Search(), checksum_file(path / "model.safetensors")[:12]


def _pretrain(
    config: ScratchMatcher, run: Path, group: ProcessGroup, scorer: minireranker.Scorer, pages: DrawnPages
) -> Records:
    """Train the first layers on the words' hashes, with a run folder inside this one."""
    steps = config.pretraining
    if not config.pretrained_layers or not steps:
        return
    scorer.backbone.text.requires_grad_(True)
    model = Pretraining(scorer, _hash_head(config).to(group.device), config.pretrained_layers).to(group.device)
    plan = BatchPlan(pages=4, queries=12, kind="labelled", strips=steps)
    training = Training(
        model=model,
        schedule=Schedule(steps, config.lr, warmup=config.warmup, save_every=config.save_every),
        make_batch=BatchMaker(pages.features, pages.keys, str(config.seed), plan),
        losses=model.losses,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
    )
    for record in train(RunFolder(run / "spelling"), training, group):  # the folder keeps its stored name
        yield record | {"stage": "pretraining"}
    scorer.backbone.model.zero_grad(set_to_none=True)


def _hash_head(config: ScratchMatcher) -> nn.Linear:
    """The reader's head from states to word hashes, as wide as the language model."""
    head = nn.Linear(config.shape.hidden, N_HASHES)
    heads = load_file(_reader(config) / HEADS)
    weight = _widened(heads["hashes.weight"].T, config.shape.hidden).T
    head.load_state_dict({"weight": weight, "bias": heads["hashes.bias"]})
    return head


def _batches(config: ScratchMatcher, run: Path, seed: str, pages: DrawnPages, strips: int = 0) -> BatchMaker:
    mine = None
    if config.mined:
        embedder, search, _ = _embedder(config, run, torch.device("cpu"))  # worker processes make the batches
        mine = Miner(embedder, search, pages.features, pages.keys, config.mined)
    kind: Any = "labelled"
    if isinstance(config, ScratchEmbedder):
        kind = "answered"
    elif isinstance(config, ScratchReranker) and config.ranking > 0:
        kind = "crossed"
    plan = BatchPlan(pages=config.pages, queries=config.queries, kind=kind, strips=strips, mine=mine)
    return BatchMaker(pages.features, pages.keys, seed, plan)


def _matching(
    config: ScratchEmbedder | ScratchReranker,
    run: Path,
    group: ProcessGroup,
    start: Start,
    pages: DrawnPages,
    unseen: DrawnPages | None,
) -> Callable[[Contrast | Judge], Training]:
    """From a model to its training on ``pages``, measured on ``unseen``."""
    seed = batch_seed(config.seed, start.checkpoint if config.start else None)
    make = _batches(config, run, seed, pages, round(config.strips * config.steps))
    unseen_batches = _batches(config, run, str(config.seed), unseen) if unseen else None

    def training(model: Contrast | Judge) -> Training:
        return Training(
            model=model,
            schedule=config.schedule(),
            make_batch=make,
            losses=model.losses,
            evaluate=_measure(model.losses, unseen_batches, group.device) if unseen_batches else None,
            evaluate_every=config.evaluate_every,
            workers=config.workers,
        )

    return training


def _measure(
    losses: Callable[[Batch], Losses], make: BatchMaker, device: torch.device
) -> Callable[[], dict[str, float]]:
    """Mean losses and accuracy over whole held-out pages; memorized pages do not count."""

    def measure() -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):  # do not compile layers for the measurement
            found = [losses(placed(make(i), device)) for i in range(HELD_OUT_BATCHES)]
        return {f"val_{name}": sum(float(one[name]) for one in found) / len(found) for name in found[0]}

    return measure
