"""Trains our own small Qwen3-VL from nothing: reader, then embedder, then reranker. Each writes a checkpoint.

The vision tower learns to read and is frozen; the language models are trained on what it makes of the drawn pages.
Knows the order of things; what is learnt stands in ``reader`` and ``matching``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmrr import random_checkpoint
from mmrr.embedders import colqwen3 as late
from mmrr.embedders import qwen3_vl as embedders
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints, families
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
from mmrr.training.distributed import Crew, join, placed
from mmrr.training.from_scratch.matching import BatchMaker, Contrast, Judge, Spelling, batch_seed
from mmrr.training.from_scratch.reader import CropMaker, Reader
from mmrr.training.loop import RunFolder, Schedule, mixed, train
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.workspace.files import HashCache, checksum_file, save_tensors

Records = Iterator[dict[str, Any]]

#: (columns, rows, crops a batch) in cells. Longer crops teach words and lines, larger ones attention over a page.
CROPS = ((8, 8, 16), (8, 8, 16), (8, 8, 16), (16, 8, 8), (16, 16, 4))
HEADS = "heads.safetensors"
#: Of the vision tower's weights: what makes its early features ready for the language model.
DEEPSTACK = "deepstack_merger_list."
#: Reports drawn from the held-out documents: to measure reading on, and matching, in so many batches.
HELD_OUT_REPORTS, MATCHED_REPORTS, HELD_OUT_BATCHES = 30, 12, 16


def train_reader(config: ScratchReader, run: Path) -> Records:
    """Teach a vision tower to read; the checkpoint's language model is untrained.

    With ``reader`` in the config it goes on from that run's weights. Raises MmrrError for documents that cannot be
    read, for a reader of another shape and for ``keep_heads`` without a ``reader``.
    """
    if config.keep_heads and not config.reader:
        raise MmrrError("keep_heads = true, but the config names no `reader` whose heads could be kept: name its run")
    crew = join()
    known, held_out = documents(config)
    model: Any = random_checkpoint.new_model(config.shape, config.seed)
    reader = Reader(model.model.visual, config.shape.hidden, config.hash_weight)
    if config.reader:
        _load_tower(model, config.reader)
        reader.load_state_dict(load_file(config.reader / HEADS), strict=False)
        if config.keep_heads:
            reader.keep_heads()
    reader.to(crew.device)
    make = CropMaker(_pool(config, run, known), config.reports, config.seed, CROPS, letters=config.letters)
    evaluate = None
    if held_out:
        crops = CropMaker(_held_out_pool(config, run, held_out), HELD_OUT_REPORTS, config.seed, CROPS[:1])
        test = [crops(i) for i in range(5)]

        def evaluate() -> dict[str, float]:
            return reader.scores(test)

    yield from _train(config, crew, RunFolder(run), reader, config.schedule(), make, reader.losses, evaluate)
    if crew.leads:
        heads = {name: value for name, value in reader.state_dict().items() if not name.startswith("tower.")}
        save_tensors(heads, run / HEADS)
        random_checkpoint.save(model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16)


def train_embedder(config: ScratchEmbedder, run: Path) -> Records:
    """Teach spelling, then contrast, on a trained reader's features.

    Raises MmrrError without a trained reader, for ``mined`` or ``held`` without ``embedder``, and for it without them.
    """
    _check_mining(config)
    crew = join()
    known, held_out = documents(config)
    prepare = minireranker.Prepare(band="0:1")
    checkpoint, scorer, features, keys = yield from begin(config, run, crew, known, prepare)
    embedder = late.Embedder(checkpoint, late.Prepare(), crew.device, torch.float32)
    embedder.backbone.model.load_state_dict(scorer.backbone.model.state_dict())
    embedder.backbone.text.requires_grad_(True)
    embedder.projection.requires_grad_(True)
    weights = config.pointing, config.whole, config.held
    contrast = Contrast(embedder, late.Search(), *weights, fused=config.fused).to(crew.device)
    unseen = yield from _unseen(config, run, crew, held_out)
    if config.embedder:
        features, unseen = yield from _embedded(config, run, crew, features, keys, unseen)
    make = _matching(config, run, checkpoint, features, keys)
    evaluate = unseen and _measure(config, run, crew, contrast.losses, *unseen)
    yield from _train(config, crew, RunFolder(run), contrast, config.schedule(), make, contrast.losses, evaluate)
    if crew.leads:
        weight = embedder.projection.weight
        size, dtype = config.shape.max_tokens, torch.bfloat16
        temperature = contrast.temperature.neg().exp().item()
        random_checkpoint.save(
            embedder.backbone.model, run / CHECKPOINT, size, dtype, projection=weight, temperature=temperature
        )


def train_reranker(config: ScratchReranker, run: Path) -> Records:
    """Teach spelling, then judging, with band, exit and pruning on.

    Raises MmrrError without a trained reader, for ``mined`` without ``embedder``, and for a layer that cannot point.
    """
    shape = {"text_config": {"num_hidden_layers": config.shape.layers}}
    prepare = minireranker.resolve(minireranker.Prepare(band=config.band), shape)
    start, end = map(int, prepare.band.split(":"))
    if config.pointing and not start <= config.spelled < min(end, config.exit):
        raise MmrrError(
            f"spelled = {config.spelled}: the layer after those that spell, number {config.spelled}, points, so it "
            f"must lie in the band {prepare.band} and below the exit {config.exit}"
        )
    _check_mining(config)
    crew = join()
    known, held_out = documents(config)
    checkpoint, scorer, features, keys = yield from begin(config, run, crew, known, prepare)
    unseen = yield from _unseen(config, run, crew, held_out)
    keep = 1.0
    if config.embedder and (config.keep < 1 or config.mined):
        keep = config.keep
        features, unseen = yield from _embedded(config, run, crew, features, keys, unseen)
    scorer.backbone.text.requires_grad_(True)
    judge = Judge(scorer, scorer.band, config.exit, keep, config.pointing, config.spelled, config.ranking)
    make = _matching(config, run, checkpoint, features, keys)
    evaluate = unseen and _measure(config, run, crew, judge.losses, *unseen)
    yield from _train(config, crew, RunFolder(run), judge, config.schedule(), make, judge.losses, evaluate)
    if crew.leads:
        random_checkpoint.save(scorer.backbone.model, run / CHECKPOINT, config.shape.max_tokens, torch.bfloat16)


def documents(config: ScratchConfig) -> tuple[list[Document], list[Document]]:
    """To train on, and held out."""
    return split([one for path in config.documents for one in read_documents(path)], config.held_out)


def _pool(config: ScratchConfig, run: Path, known: list[Document]) -> PagePool:
    return PagePool(config.pool or run / "pool", known, config.seed)


def _held_out_pool(config: ScratchConfig, run: Path, held_out: list[Document]) -> PagePool:
    return PagePool((config.pool or run / "pool") / "held-out", held_out, config.seed)


def begin(
    config: ScratchMatcher,
    run: Path,
    crew: Crew,
    known: list[Document],
    prepare: minireranker.Prepare,
    phrases: Sequence[str] = (),
) -> Any:
    """What embedder and reranker begin with: a scorer that can spell, over the features of a frozen tower.

    Yields records; returns the checkpoint it began with, the scorer, the features and their keys. ``phrases``: what
    the tokenizer knows beside the usual ones.
    """
    checkpoint = checkpoints.resolve(str(_start(config, run, phrases)), None, HashCache(run / "hashes.json"))
    scorer = minireranker.Scorer(checkpoint, prepare, crew.device, torch.float32)
    _load_tower(scorer.backbone.model, _reader(config))  # its features are what is trained on, whatever `start` had
    features, keys = yield from _features(config, run, crew, _pool(config, run, known), config.reports)
    if config.start is None:
        yield from _spell(config, run, crew, scorer, features, keys)
    return checkpoint, scorer, features, keys


def _start(config: ScratchMatcher, run: Path, phrases: Sequence[str]) -> Path:
    """The checkpoint to go on from: another run's, or a fresh model with the reader's vision tower, in float32."""
    if config.start is not None:
        if not (config.start / CHECKPOINT / "model.safetensors").exists():
            raise MmrrError(f"no trained model at {config.start}: `start` is the --run folder of a run that has ended")
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
        raise MmrrError("the config names no `reader`: run mmrr train reader first, and name its --run folder")
    return config.reader


def _load_tower(model: Any, reader: Path) -> None:
    file = reader / CHECKPOINT / "model.safetensors"
    if not file.exists() or not (reader / HEADS).exists():
        raise MmrrError(f"no trained reader at {reader}: run mmrr train reader first, and name its --run folder")
    prefix = "model.visual."
    tower = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
    own = model.model.visual.state_dict()
    if not any(name.startswith(DEEPSTACK) for name in own):  # a model may do without
        tower = {name: value for name, value in tower.items() if not name.startswith(DEEPSTACK)}
    for name in tower.keys() & own.keys():
        if "merger" in name and ".linear_fc2." in name:
            tower[name] = _widened(tower[name], own[name].shape[0])
    try:
        model.model.visual.load_state_dict(tower)
    except RuntimeError as error:
        raise MmrrError(f"the vision tower of {reader} has another shape than this config's") from error


def _widened(rows: Tensor, n: int) -> Tensor:
    """With rows of zeros up to ``n``: a language model wider than the reader's sees its tokens followed by zeros."""
    return torch.cat([rows, rows.new_zeros(max(0, n - len(rows)), *rows.shape[1:])])


def _features(config: ScratchConfig, run: Path, crew: Crew, pool: PagePool, reports: int) -> Any:
    """What the reader makes of the pages: one width for all models that are trained on it."""
    path = _reader(config) / CHECKPOINT

    def tower() -> Any:
        reader = checkpoints.resolve(str(path), None, HashCache(run / "hashes.json"))
        return embedders.Embedder(reader, embedders.Prepare(), crew.device, torch.float32).backbone

    features = TowerFeatures(pool.folder / f"features-{checksum_file(path / 'model.safetensors')[:12]}", pool)
    keys = yield from make_all(features, reports, tower, crew.device)
    return features, keys


def _unseen(config: ScratchConfig, run: Path, crew: Crew, held_out: list[Document]) -> Any:
    """TowerFeatures and keys of pages of documents that are never trained on; None: no document is held out."""
    if not held_out:
        return None
    return (yield from _features(config, run, crew, _held_out_pool(config, run, held_out), MATCHED_REPORTS))


def _measure(
    config: ScratchMatcher, run: Path, crew: Crew, losses: Any, features: TowerFeatures, keys: Keys
) -> Callable[[], dict[str, float]]:
    """Mean losses and share right over whole pages that are not trained on: what is learnt by heart is not in it."""
    make = _batches(config, run, str(config.seed), features, keys)

    def measure() -> dict[str, float]:
        with torch.compiler.set_stance("force_eager"):  # no layer is compiled anew for this
            found = [losses(placed(make(i), crew.device)) for i in range(HELD_OUT_BATCHES)]
        return {f"val_{name}": sum(float(one[name]) for one in found) / len(found) for name in found[0]}

    return measure


def _check_mining(config: ScratchMatcher) -> None:
    if config.mined and not config.embedder:
        raise MmrrError(f"mined = {config.mined}, but the config names no `embedder` that finds pages for queries")
    if isinstance(config, ScratchReranker) and config.mined and not config.ranking:
        raise MmrrError(
            f"mined = {config.mined}, but ranking = 0: pages found for queries are asked them with it alone"
        )
    if isinstance(config, ScratchEmbedder):
        if config.held and not config.embedder:
            raise MmrrError(f"held = {config.held}, but the config names no `embedder` whose attention is held")
        if config.embedder and not (config.mined or config.held):
            raise MmrrError(
                "an embedder's `embedder` is for `mined` or `held`, and both are 0: set one, or leave it out"
            )


def _embedded(config: ScratchMatcher, run: Path, crew: Crew, features: TowerFeatures, keys: Keys, unseen: Any) -> Any:
    """The features to train on and those of ``_unseen``, with what `embedder` makes of the pages beside them."""
    features = yield from _embeddings(config, run, crew, features, keys)
    if unseen:
        unseen = (yield from _embeddings(config, run, crew, *unseen)), unseen[1]
    return features, unseen


def _embeddings(config: ScratchMatcher, run: Path, crew: Crew, features: TowerFeatures, keys: Keys) -> Any:
    embedder, _, name = _embedder(config, run, crew.device)
    embedded = TowerFeatures(features.folder, features.pool, name)
    for done, key in enumerate(keys, 1):
        with mixed(embedder.backbone.device, torch.bfloat16):
            embedded.embed(embedder, *key)
        if done % 16 == 0 or done == len(keys):
            yield {"stage": "embeddings", "step": done, "steps": len(keys), "lr": 0.0}
    return embedded


def _embedder(config: ScratchMatcher, run: Path, device: torch.device) -> tuple[Any, Any, str]:
    """The trained embedder, the options of its queries, and what names its weights."""
    assert config.embedder is not None
    path = config.embedder / CHECKPOINT
    if not (path / "model.safetensors").exists():
        raise MmrrError(f"no trained embedder at {config.embedder}: expected the --run folder of mmrr train embedder")
    checkpoint = checkpoints.resolve(str(path), None, HashCache(run / "hashes.json"))
    family = families.load("embedders", families.embedder(checkpoint.config()))
    embedder = family.load(checkpoint, family.Prepare(), device, torch.float32)
    return embedder, family.Search(), checksum_file(path / "model.safetensors")[:12]


def _spell(config: ScratchMatcher, run: Path, crew: Crew, scorer: Any, features: TowerFeatures, keys: Keys) -> Records:
    """The first layers, by words' hashes; in a run folder of its own, inside this one."""
    if not config.spelled or not config.spelling:
        return
    scorer.backbone.text.requires_grad_(True)
    spelling = Spelling(scorer, _hash_head(config).to(crew.device), config.spelled).to(crew.device)
    make = BatchMaker(
        features, keys, str(config.seed), pages=4, queries=12, answered_only=False, strips=config.spelling
    )
    schedule = Schedule(config.spelling, config.lr, warmup=config.warmup, save_every=config.save_every)
    folder = RunFolder(run / "spelling")
    for record in _train(config, crew, folder, spelling, schedule, make, spelling.losses, None):
        yield record | {"stage": "spelling"}
    scorer.backbone.model.zero_grad(set_to_none=True)


def _hash_head(config: ScratchMatcher) -> nn.Linear:
    """From states to words' hashes, as the reader learnt it."""
    head = nn.Linear(config.shape.hidden, N_HASHES)
    heads = load_file(_reader(config) / HEADS)
    weight = _widened(heads["hashes.weight"].T, config.shape.hidden).T
    head.load_state_dict({"weight": weight, "bias": heads["hashes.bias"]})
    return head


def _batches(
    config: ScratchMatcher, run: Path, seed: str, features: TowerFeatures, keys: Keys, strips: int = 0
) -> BatchMaker:
    mine = None
    if config.mined:
        embedder, search, _ = _embedder(config, run, torch.device("cpu"))  # batches are made by processes of their own
        mine = Miner(embedder, search, features, keys, config.mined)
    return BatchMaker(
        features,
        keys,
        seed,
        pages=config.pages,
        queries=config.queries,
        answered_only=isinstance(config, ScratchEmbedder),
        crossed=isinstance(config, ScratchReranker) and config.ranking > 0,
        mine=mine,
        strips=strips,
    )


def _matching(config: ScratchMatcher, run: Path, begun: Checkpoint, features: TowerFeatures, keys: Keys) -> BatchMaker:
    seed = batch_seed(config.seed, begun if config.start else None)
    return _batches(config, run, seed, features, keys, round(config.strips * config.steps))


def _train(
    config: ScratchConfig,
    crew: Crew,
    folder: RunFolder,
    model: nn.Module,
    schedule: Schedule,
    make: Any,
    losses: Any,
    evaluate: Any,
) -> Records:
    yield from train(
        folder,
        model,
        schedule,
        make,
        losses,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
        crew=crew,
    )
