"""Trains EDJE (arXiv 2510.06820, training): adapter and joint encoder over a frozen vision encoder, on drawn pages.

Each step builds the scorer's own forward from the trained tensors, so a training optimizes the computation that ranks.
The vision encoder's output for a page is computed once and stored in the folder of the page pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from mmrr.backbones import edje as backbone
from mmrr.backbones import qwen3_vl
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import ANY, Checkpoint, resolve
from mmrr.scorers import edje as scorer
from mmrr.training.config import CHECKPOINT, ModelName
from mmrr.training.data.tower_features import TowerFeatures, make_all
from mmrr.training.distributed import ProcessGroup, join
from mmrr.training.families.edje_init import Network, Sizes, learn_pieces, load, save, write_pieces
from mmrr.training.families.edje_losses import Batch, Batches, Lesson, Teacher
from mmrr.training.families.edje_pretrain import FIRST_PAGES, Pretraining, WordBatches, init_letters
from mmrr.training.from_scratch.batches import STRIP_ROWS, BatchMaker, BatchPlan, batch_seed
from mmrr.training.from_scratch.run import DrawnPages, Stage
from mmrr.training.loop import Records, RunFolder, Schedule, Tell, Training
from mmrr.training.loop import train as run_loop
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import Document, read_documents, split
from mmrr.workspace.files import HashCache, checksum_file

#: Positions of a text: its pieces, [CLS] and the two [SEP]. The page's tokens come on top.
TEXT = scorer.MAX_PIECES + 3
#: Reports drawn from the held-out documents, and batches of them that are scored.
HELD_OUT_REPORTS, HELD_OUT_BATCHES = 4, 12
#: Batch makers that are tried in turn: a strip of a page may have no words for a query.
ATTEMPTS = 8
NONE = ModelName("")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """EDJE on pages drawn from documents. The default sizes are a small model's; with ``start`` that checkpoint's."""

    scorer: str
    documents: tuple[Path, ...]  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never drawn for training
    seed: int = 0
    pool: Path | None = None  # folder of drawn pages; default: in the run folder
    vision: ModelName  # the frozen vision encoder, as in mmrr precache -o vision
    vision_revision: str = ""
    start: ModelName = NONE  # an EDJE checkpoint to start from; default: random init
    start_revision: str = ""
    language: ModelName = NONE  # where the word pieces of `start` are read from; default: `start` itself
    teacher: ModelName = NONE  # an EDJE checkpoint over the same vision encoder; default: no distillation
    # The model
    tokens: int = 64  # m, learned queries of the adapter; 0: Local, every vision token is kept
    max_tokens: int = 1280  # Local: the most vision tokens a page
    adapter_heads: int = 4
    adapter_mlp: int = 2048
    layers: int = 4
    hidden: int = 256
    heads: int = 8
    mlp: int = 1024
    vocabulary: int = 4096  # word pieces, learned from the documents
    punctuation: bool = False  # keep punctuation in texts; EDJE removes it
    # Weights of the losses; the listwise loss has weight 1
    masking: float = 1.0
    distillation: float = 1.0  # with a teacher
    passages: int = 1  # masked passages a page; 0: the queries are masked
    pointing: float = 1.0  # Local: weight of the pointing loss
    pretraining: int = 1500  # Local, random init: steps with the pointing loss alone; 0: none
    # The run
    reports: int = 1000  # drawn reports to train on
    strips: float = 0.5  # share of the steps on strips of pages
    rows: int = STRIP_ROWS  # rows of cells in a strip
    pages: int = 4  # a batch
    queries: int = 2  # a page
    steps: int = 4000
    lr: float = 5e-4
    warmup: int = 200  # steps
    decay: float = 0.5  # share of the steps over which the rate falls
    weight_decay: float = 0.05
    save_every: int = 250
    evaluate_every: int = 500
    workers: int = 1

    result: ClassVar[str] = CHECKPOINT

    def schedule(self) -> Schedule:
        """Constant rate with a linear decay at the end."""
        return Schedule(
            self.steps,
            self.lr,
            warmup=self.warmup,
            decay=self.decay,
            weight_decay=self.weight_decay,
            save_every=self.save_every,
        )


def config_class(values: dict[str, Any], path: Path) -> type[Config]:
    """The one config of this family."""
    return Config


@dataclass(frozen=True, slots=True)
class _Setup:
    """What the stages of a training share."""

    config: Config
    run: Path
    group: ProcessGroup
    vision: Checkpoint
    start: Checkpoint
    lesson: Lesson


def train(config: Config, run: Path, tell: Tell = lambda _: None) -> Records:
    """Train, yield the log's records, and leave the checkpoint in the run folder.

    Raises MmrrError for documents that cannot be read, and for a vision encoder, a start or a teacher that does not
    fit.
    """
    group = join()
    hashes = HashCache(run / "hashes.json")
    vision = resolve(config.vision, config.vision_revision or None, hashes, scorer.VISION_TYPES)
    fixed, width = backbone.vision_tokens(vision.config())
    _check(config, fixed)
    known, held_out = split([one for path in config.documents for one in read_documents(path)], config.held_out)
    start = _start(config, run, known, _sizes(config, width, fixed), hashes)
    words = Checkpoint.companion(config.language).path if config.language else start.path
    network, pieces, punctuation = load(start, vision.config(), words)
    if pieces.mask is None and config.masking:
        raise MmrrError(f"the tokenizer of {start.id} has no [MASK]; expected masking = 0")
    network.to(group.device)
    config = replace(config, punctuation=punctuation)
    lesson = Lesson(config, network, pieces, _teacher(config, vision, hashes, group.device))
    setup = _Setup(config, run, group, vision, start, lesson)
    pool = PagePool(config.pool or run / "pool", known, config.seed)
    drawn = yield from _features(vision, pool, config.reports, group)
    if not config.start and lesson.teacher:
        _copy_joint_encoder(network, lesson.teacher.network)
    elif not config.start and not network.sizes.tokens and config.pretraining:
        yield from _pretrain(setup, drawn)
    test = (
        (yield from _held_out_batches(setup, PagePool(pool.folder / "held-out", held_out, config.seed)))
        if held_out
        else []
    )
    size = sum(tensor.numel() for tensor in network.tensors().values())
    kind = f"{network.sizes.tokens} tokens a page" if network.sizes.tokens else "Local"
    tell(f"{size / 1e6:.1f} million weights, {kind}; {len(drawn.keys)} pages of {config.reports} reports")
    seed = batch_seed(config.seed, start if config.start else None)
    training = Training(
        model=network,
        schedule=config.schedule(),
        make_batch=_batches(config, seed, drawn, round(config.strips * config.steps)),
        losses=lesson.losses,
        evaluate=(lambda: lesson.measure(test)) if test else None,
        evaluate_every=config.evaluate_every,
        workers=config.workers,
    )
    yield from run_loop(RunFolder(run), training, group)
    if group.is_main:
        save(network, words, config.punctuation, run / CHECKPOINT, vision.id)
    group.close()


def _batches(config: Config, seed: str, drawn: DrawnPages, strips: int) -> Batches:
    plan = BatchPlan(pages=config.pages, queries=config.queries, kind="answered", strips=strips, rows=config.rows)
    makers = [BatchMaker(drawn.features, drawn.keys, f"{seed}/{attempt}", plan) for attempt in range(ATTEMPTS)]
    return Batches(config.seed, config.passages, makers)


def _held_out_batches(setup: _Setup, pool: PagePool) -> Stage[list[Batch]]:
    """Batches of pages that are never trained on. A Local network is measured on strips, like most of its steps."""
    config = setup.config
    drawn = yield from _features(setup.vision, pool, HELD_OUT_REPORTS, setup.group)
    strips = 0 if setup.lesson.network.sizes.tokens or not config.strips else HELD_OUT_BATCHES
    make = _batches(config, str(config.seed), drawn, strips)
    return [make(n) for n in range(HELD_OUT_BATCHES)]


def _pretrain(setup: _Setup, drawn: DrawnPages) -> Records:
    """Train a random Local network with the pointing loss alone, with a run folder inside this one."""
    config, lesson, network = setup.config, setup.lesson, setup.lesson.network
    torch.manual_seed(config.seed)
    pieces = (setup.start.path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    some = (drawn.features.load(*key) for key in drawn.keys[:: max(1, len(drawn.keys) // FIRST_PAGES)])
    init_letters(network, pieces, lesson.ids, some)
    network.to(setup.group.device)
    model = Pretraining(network, lesson.ids, lesson.pieces.sep)
    training = Training(
        model=model,
        schedule=replace(config.schedule(), steps=config.pretraining),
        make_batch=WordBatches(drawn.features, drawn.keys, config.seed),
        losses=model.losses,
        workers=config.workers,
    )
    folder = RunFolder(setup.run / "spelling")  # the stored name of the pre-training
    for record in run_loop(folder, training, setup.group):
        yield record | {"stage": "pretraining"}
    network.zero_grad(set_to_none=True)


def _copy_joint_encoder(network: Network, teacher: Network) -> None:
    """Copy the teacher's joint encoder and head, where the shapes are equal. The adapter stays random."""
    own = network.state_dict()
    taken = {
        name: tensor
        for name, tensor in teacher.state_dict().items()
        if not name.startswith("vision_projection.") and name in own and own[name].shape == tensor.shape
    }
    network.load_state_dict(taken, strict=False)


def _check(config: Config, fixed: int) -> None:
    """Raises MmrrError for a value out of range. ``fixed``: tokens of every page; 0: the number depends on the page."""
    least = {"tokens": 0, "max_tokens": 1, "pages": 2, "queries": 1, "rows": 1, "layers": 1, "vocabulary": 256}
    least |= dict.fromkeys(("hidden", "heads", "mlp", "adapter_heads", "adapter_mlp"), 1)
    least |= dict.fromkeys(("masking", "distillation", "passages"), 0)
    for name, smallest in least.items():
        if getattr(config, name) < smallest:
            raise MmrrError(f"{name} = {getattr(config, name)}; expected {smallest} or more")
    if fixed and config.strips:
        raise MmrrError(
            f"strips = {config.strips}: {config.vision} resizes every page to a square, so it has no strips of tokens; "
            "expected strips = 0.0"
        )


def _features(vision: Checkpoint, pool: PagePool, reports: int, group: ProcessGroup) -> Stage[DrawnPages]:
    """The vision encoder's output for the pages of a pool, in a folder that other trainings share."""
    file = vision.path / "model.safetensors"
    name = checksum_file(file) if file.exists() else vision.revision.removeprefix("sha256:")
    features = TowerFeatures(pool.folder / f"features-{name[:12]}", pool)
    keys = yield from make_all(features, reports, lambda: _tower(vision, group), group.device)
    return DrawnPages(features, keys)


def _tower(vision: Checkpoint, group: ProcessGroup) -> qwen3_vl.Backbone | _SquareEncoder:
    if vision.adapter:
        raise MmrrError(f"{vision.id} is a LoRA adapter; EDJE's vision encoder is a whole checkpoint")
    config = vision.config()
    if backbone.reads_any_size(config):
        return qwen3_vl.Backbone(vision.path, None, group.device, torch.float32, needs_head=False)
    return _SquareEncoder(backbone.Vision(vision.path, config, group.device, torch.float32))


class _SquareEncoder:
    """A vision encoder with one image size, with the interface that TowerFeatures needs."""

    def __init__(self, vision: backbone.Vision) -> None:
        self.encoder = vision

    def vision(self, images: Sequence[Any]) -> list[qwen3_vl.Visual]:
        """The tokens of each image (PIL) on a square grid."""
        tokens = self.encoder.tokens(images)
        side = round(tokens.shape[1] ** 0.5)
        return [qwen3_vl.Visual(one, one.new_zeros(0, *one.shape), (side, side)) for one in tokens]


def _teacher(config: Config, vision: Checkpoint, hashes: HashCache, device: torch.device) -> Teacher | None:
    if not config.teacher:
        return None
    found = resolve(config.teacher, None, hashes, (ANY,))
    teacher = Teacher(*load(found, vision.config(), found.path))
    teacher.network.to(device).requires_grad_(False)
    return teacher


def _sizes(config: Config, width: int, fixed: int) -> Sizes:
    """The sizes of a new network; the number of word pieces is not known yet. ``width``: of the vision tokens."""
    return Sizes(
        tokens=config.tokens,
        vision_width=width,
        adapter_heads=config.adapter_heads,
        adapter_mlp=config.adapter_mlp,
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        mlp=config.mlp,
        words=config.vocabulary,
        positions=TEXT + (config.tokens or fixed or config.max_tokens),
    )


def _start(config: Config, run: Path, documents: list[Document], sizes: Sizes, hashes: HashCache) -> Checkpoint:
    """The checkpoint to start from: the config's, or a random one with word pieces learned from the documents."""
    if config.start:
        return resolve(config.start, config.start_revision or None, hashes, (ANY,))
    path = run / "start"
    if not (path / "model.safetensors").exists():
        path.mkdir(parents=True, exist_ok=True)
        pieces = learn_pieces(documents, config.vocabulary, punctuation=config.punctuation)
        write_pieces(pieces, path)
        torch.manual_seed(config.seed)
        network = Network(replace(sizes, words=len(pieces)))
        save(network, path, config.punctuation, path, dtype=torch.float32)
    return resolve(str(path), None, hashes, (ANY,))
