"""The configs of ZipRerank's two trainings: LoRA on a published Qwen3-VL, or a small model from random init."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmrr.errors import MmrrError
from mmrr.random_checkpoint import Shape
from mmrr.scorers.ziprerank import LETTERS, TAUGHT
from mmrr.training.config import ADAPTER, CHECKPOINT, DataName, ModelName
from mmrr.training.loop import Schedule


@dataclass(frozen=True, slots=True)
class AuxiliaryWeights:
    """Weights of a small model's auxiliary losses; see ``ziprerank_aux``."""

    layer: int  # the layer with the pointing loss
    pointing: float
    naming: float
    likeness: float

    @property
    def any(self) -> bool:
        """True if a loss other than likeness has a weight."""
        return bool(self.pointing or self.naming)


@dataclass(frozen=True, slots=True)
class RankerSettings:
    """What the losses need to know of either config."""

    stage: int
    gamma: float
    rank_weight: float
    lm_weight: float
    keep: float = 1.0  # share of a page's tokens
    recompute: bool = False
    auxiliary: AuxiliaryWeights | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListsConfig:
    """The keys that both trainings have."""

    scorer: str
    seed: int = 0
    steps: int = 0  # optimizer steps; with a model, 0: as many as the epochs take
    lr: float | None = None  # default: 1e-4 with a model, 1e-3 from random init
    warmup: float = 0.03  # share of the steps, before a cosine to 0
    weight_decay: float = 0.02
    clip: float = 1.0
    accumulate: int = 1  # batches a step
    save_every: int = 50
    workers: int = 1
    size: int = 1  # lists a batch and process
    candidates: int = 20  # a list, at most
    stage: int = 2  # loss on the letters' logits: 1, RankNet; 2, soft ranking
    gamma: float = 0.5  # soft ranking: ratio of the weights of neighbouring ranks
    rank_weight: float | None = None  # of that loss; default: 10 in stage 1, 1 in stage 2
    lm_weight: float | None = None  # of the written ranking's loss; default: 1 with a model, 0 from random init

    def __post_init__(self) -> None:
        """Raises MmrrError for a value out of range."""
        if self.stage not in (1, 2):
            raise MmrrError(f"stage = {self.stage}; expected 1 (RankNet) or 2 (soft ranking)")
        if not 2 <= self.candidates <= len(LETTERS):
            raise MmrrError(f"candidates = {self.candidates}; expected 2 to {len(LETTERS)}, one letter each")
        if not 0 < self.gamma <= 1:
            raise MmrrError(f"gamma = {self.gamma}; expected a number above 0, at most 1")
        _at_least(self, 1, "size")
        _at_least(self, 0, "rank_weight", "lm_weight")

    def _settings(self, lm_weight: float) -> RankerSettings:
        """``lm_weight``: the default of the key."""
        rank_weight = (10.0 if self.stage == 1 else 1.0) if self.rank_weight is None else self.rank_weight
        return RankerSettings(
            self.stage, self.gamma, rank_weight, lm_weight if self.lm_weight is None else self.lm_weight
        )

    def _schedule(self, steps: int, lr: float) -> Schedule:
        """``lr``: the default of the key."""
        return Schedule(
            steps,
            self.lr or lr,
            warmup=round(self.warmup * steps),
            weight_decay=self.weight_decay,
            clip=self.clip,
            save_every=self.save_every,
            cosine=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneListsConfig(ListsConfig):
    """LoRA fine-tuning of a published Qwen3-VL on ranked lists."""

    model: ModelName
    lists: DataName
    revision: str = ""  # of the model on the Hub
    images: Path | None = None  # folder that image paths count from; default: the lists file's
    validation: Path | None = None  # lists to measure on, never trained on
    split: str = ""  # of a published set
    limit: int = 0  # queries of a published set; 0: all
    evaluate_every: int = 200
    shuffle: bool = True  # shuffle the candidates of a list each time it is used
    epochs: float = 1.0
    rank: int = 16
    alpha: int = 32
    recompute: bool = False  # keep no activations within a layer: less memory, about a third more time
    max_side: int = TAUGHT["max_side"]  # pixels of a page's longer side; 0: no limit
    device: str = "auto"
    dtype: str = "auto"  # bfloat16 or float32

    result: ClassVar[str] = ADAPTER

    def __post_init__(self) -> None:
        """Raises MmrrError for a value out of range."""
        ListsConfig.__post_init__(self)
        _at_least(self, 0, "limit")
        if self.dtype not in ("auto", "bfloat16", "float32"):
            raise MmrrError(f"dtype = {self.dtype!r}; expected auto, bfloat16 or float32")

    def schedule(self, steps: int) -> Schedule:
        """Warm-up, then a cosine to 0."""
        return self._schedule(steps, lr=1e-4)

    def settings(self) -> RankerSettings:
        """The losses' settings: whole pages, no auxiliary losses."""
        return dataclasses.replace(self._settings(lm_weight=1.0), recompute=self.recompute)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomInitListsConfig(ListsConfig):
    """A small model from random init, on lists of pages drawn from documents."""

    documents: tuple[Path, ...]  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never drawn for training
    pool: Path | None = None  # folder of drawn pages; default: in the run folder
    reader: Path | None = None  # run folder of a trained reader
    start: Path | None = None  # run folder whose weights this run starts from, without pre-training
    shape: Shape = field(default_factory=lambda: Shape(layers=6))
    pretraining: int = 1500  # steps that teach the first layers the words' hashes
    pretrained_layers: int = 2  # number of those layers; the next layer gets the pointing loss
    reports: int = 1000  # drawn reports to train on
    strips: float = 0.5  # share of the steps on strips of pages
    rows: int = 4  # rows of cells in a strip
    keep: float = 1.0  # share of a page's tokens, those that the scorer keeps with interaction=hidden
    likeness: float = 1.0  # with keep below 1: weight of the loss on the kept tokens
    pointing: float = 1.0  # weight of the losses on where heads look: pointing, gathering, choosing
    naming: float = 1.0  # weight of the naming and the judging loss

    result: ClassVar[str] = CHECKPOINT

    def __post_init__(self) -> None:
        """Raises MmrrError for a value out of range, and for keys that do not fit together."""
        ListsConfig.__post_init__(self)
        if not self.steps:
            raise MmrrError("training from random init has no epochs; the config must set `steps`")
        most = self.shape.layers - 2
        if self.pretrained_layers > most:
            raise MmrrError(
                f"pretrained_layers = {self.pretrained_layers}; expected {most} or less, `shape.layers` - 2"
            )
        if not 0 < self.keep <= 1:
            raise MmrrError(f"keep = {self.keep}; expected a share above 0, at most 1")
        _at_least(self, 1, "rows")
        _at_least(self, 0, "naming", "likeness")

    def schedule(self) -> Schedule:
        """Warm-up, then a cosine to 0."""
        return self._schedule(self.steps, lr=1e-3)

    def settings(self) -> RankerSettings:
        """The losses' settings, with the auxiliary losses that have a weight."""
        weights = AuxiliaryWeights(self.pretrained_layers, self.pointing, self.naming, self.likeness)
        auxiliary = weights if weights.any or self.keep < 1 else None
        return dataclasses.replace(self._settings(lm_weight=0.0), keep=self.keep, auxiliary=auxiliary)


def config_class(values: dict[str, Any], path: Path) -> type[FinetuneListsConfig] | type[RandomInitListsConfig]:
    """The config of the training that the keys ask for: ``model`` or ``documents``. An empty one is removed.

    Raises MmrrError for both or neither of them, and for a key of the other training.
    """
    finetunes, draws = bool(values.get("model")), bool(values.get("documents"))
    if finetunes == draws:
        found = "both" if finetunes else "neither"
        raise MmrrError(
            f"{path} has {found} of `model` and `documents`; expected `model` and `lists` to fine-tune a published "
            "model, or `documents` and `reader` to train a small model from random init"
        )
    if finetunes:
        values.pop("documents", None)
        _refuse_keys_of(RandomInitListsConfig, FinetuneListsConfig, values, path, "documents")
        if "lists" not in values:
            raise MmrrError(f"{path} names a `model`, but no `lists` to fine-tune it on")
        return FinetuneListsConfig
    values.pop("model", None)
    _refuse_keys_of(FinetuneListsConfig, RandomInitListsConfig, values, path, "model")
    return RandomInitListsConfig


def _refuse_keys_of(
    other: type[ListsConfig], own: type[ListsConfig], values: dict[str, Any], path: Path, needed: str
) -> None:
    """Raises MmrrError for a key that only the ``other`` config has; ``needed``: the key that asks for that config."""
    known = {item.name for item in dataclasses.fields(own)}
    for item in dataclasses.fields(other):
        if item.name in values and item.name not in known:
            raise MmrrError(f"{path} has `{item.name}`, which goes with `{needed}` alone; remove it")


def _at_least(config: ListsConfig, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise MmrrError(f"{name} = {value}; expected {least} or more")
