"""The TOML config of ``mmrr train``: keys, types, ranges and defaults of every training.

This module knows no models. A relative path in a config counts from the folder of the config file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NewType, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from mmrr.config import Render
from mmrr.errors import MmrrError
from mmrr.random_checkpoint import Shape
from mmrr.training import families
from mmrr.training.data.published_sets import is_published
from mmrr.training.distributed import world_size
from mmrr.training.loop import RunFolder, Schedule
from mmrr.workspace.files import expand_user, write_atomically

TASKS = ("reader", "embedder", "reranker")
#: The folder of the result inside the run folder: a whole checkpoint or a LoRA adapter.
CHECKPOINT, ADAPTER = "checkpoint", "adapter"
#: The reranker family that this module's configs train; the others are in ``training.families``.
MINIRERANKER = "minireranker"
#: Former name of a key -> its name. Old configs, and run.json of old runs, keep working.
ALIASES = {
    "held": "attention_distillation",
    "spelling": "pretraining",
    "spelled": "pretrained_layers",
}

#: A checkpoint: the path of a folder, or a Hub id.
ModelName = NewType("ModelName", str)
#: Training data: the absolute path of a file or of a published set's folder, or a Hub id as a relative path.
DataName = NewType("DataName", Path)
_SCHEDULE = Schedule(steps=0, lr=0.0)
T = TypeVar("T")
#: Receives one line of text for the user.
Notice = Callable[[str], None]


class TrainingConfig(Protocol):
    """What every config has: a frozen dataclass with the number of steps and the kind of result."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # Any: as typeshed declares a dataclass

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def result(self) -> str:
        """``CHECKPOINT`` or ``ADAPTER``: the folder that the training writes."""


class FamilyConfig(TrainingConfig, Protocol):
    """The config of a training in ``mmrr.training.families``."""

    @property
    def scorer(self) -> str:
        """Name of the scorer family."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchConfig:
    """A small model from random init, trained on synthetic pages drawn from documents."""

    documents: tuple[Path, ...]  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never drawn for training
    seed: int = 0
    pool: Path | None = None  # folder of drawn pages; default: in the run folder
    shape: Shape = field(default_factory=Shape)
    steps: int = 4000
    lr: float = 1e-3
    warmup: int = _SCHEDULE.warmup  # steps
    decay: float = _SCHEDULE.decay  # share of the steps over which the rate falls
    save_every: int = _SCHEDULE.save_every
    evaluate_every: int = 500
    workers: int = 1  # processes that prepare batches
    reader: Path | None = None  # run folder of a trained reader; for a reader: the run to continue from
    reports: int = 1000  # drawn reports to train on

    result: ClassVar[str] = CHECKPOINT

    def schedule(self) -> Schedule:
        """Constant rate with a linear decay at the end."""
        return Schedule(self.steps, self.lr, warmup=self.warmup, decay=self.decay, save_every=self.save_every)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchReader(ScratchConfig):
    """The vision tower of a small model."""

    letters: int = 2000  # first steps, on plain snippets of text
    hash_weight: float = 0.1  # weight of the word hash loss; the character loss has weight 1
    keep_heads: bool = False  # with `reader`: train the tower only, so that its features keep their meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchMatcher(ScratchConfig):
    """A language model on the features of a trained reader."""

    start: Path | None = None  # run folder whose weights this run starts from, without pre-training; default: random
    pretraining: int = 1500  # steps that teach the first layers the words' hashes
    pretrained_layers: int = 2  # number of those layers; the next layer gets the pointing loss
    strips: float = 0.5  # share of the steps on strips of pages; pre-training uses strips only
    pages: int = 4  # a batch
    queries: int = 8  # a page
    embedder: Path | None = None  # run folder of a trained embedder: mines, prunes, or is distilled from
    mined: int = 0  # above 0: negatives are drawn from the first `mined` pages that `embedder` finds for a query


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchEmbedder(ScratchMatcher):
    """A late-interaction embedder: contrastive loss over the batch, one vector a word and a cell."""

    dim: int = 128  # numbers in a vector
    pointing: float = 1.0  # weight of the loss on the cells that show a word
    whole: float = 0.3  # weight of the contrastive loss on the last token's state; its attention prunes
    attention_distillation: float = (
        0.0  # weight of the loss that keeps the last token's attention equal to `embedder`'s
    )
    fused: bool = False  # compile each layer; needs a C++ compiler


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchReranker(ScratchMatcher):
    """A yes/no reranker with band, exit and pruning on."""

    band: str = "2:5"
    exit: int = 5
    keep: float = 0.5  # share of visual tokens
    pointing: float = 1.0  # weight of the pointing loss
    ranking: float = 0.0  # weight of the ranking loss over a batch's pages; above 0 every page gets all queries


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """LoRA fine-tuning of a published Qwen3-VL on pairs. Defaults are the paper's where it names a value."""

    model: ModelName
    revision: str = ""  # of the model on the Hub
    pairs: DataName
    images: Path | None = None  # folder that image paths count from; default: the pairs file's
    validation: Path | None = None  # pairs to measure on, never trained on
    split: str = ""  # of a published set
    limit: int = 0  # queries of a published set; 0: all
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    epochs: float = 1.0
    steps: int = 0  # optimizer steps; 0: as many as the epochs take
    lr: float = 1e-4
    warmup: float = 0.03  # share of the steps
    weight_decay: float = _SCHEDULE.weight_decay
    clip: float = _SCHEDULE.clip
    accumulate: int = 4  # batches a step
    max_tokens: int = Render().max_tokens  # visual tokens a page, before pruning
    instruction: str = ""  # of the prompt; default: the model family's
    recompute: bool = False  # keep no activations of a page: less memory, about a third more time
    save_every: int = 50
    evaluate_every: int = 200
    workers: int = 1
    device: str = "auto"
    dtype: str = "auto"  # bfloat16 or float32

    result: ClassVar[str] = ADAPTER

    def schedule(self, steps: int) -> Schedule:
        """Warm-up, then a cosine to 0."""
        return Schedule(
            steps,
            self.lr,
            warmup=round(self.warmup * steps),
            weight_decay=self.weight_decay,
            clip=self.clip,
            save_every=self.save_every,
            cosine=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerConfig(FinetuneConfig):
    """Yes/no cross-entropy on miniReranker's score, with band, exit and pruning on."""

    band: str = "auto"
    exit: int = 0  # layers that run; 0: the end of the band
    embedder: ModelName = ModelName("")  # its attention prunes; default: no pruning
    embedder_revision: str = ""
    keep: float | None = None  # share of visual tokens; default: that of mmrr precache with an embedder, else 1
    pages: int = 2  # a batch and process
    queries: int = 8  # a page, at most; a page's pairs are scored together
    loss: str = "answers"  # cross-entropy of the answer over yes and no; "vocabulary": over all tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig(FinetuneConfig):
    """Contrastive loss: a query's page against the other pages of the batch and the query's hard negatives."""

    query_instruction: str = ""  # default: the model family's
    queries: int = 4  # a batch and process, each with its page
    negatives: int = 1  # hard negatives a query, from the pairs that are not relevant
    temperature: float = 0.05


_SCRATCH: dict[str, type[ScratchConfig]] = {
    "reader": ScratchReader,
    "embedder": ScratchEmbedder,
    "reranker": ScratchReranker,
}
_FINETUNED: dict[str, type[FinetuneConfig]] = {"embedder": EmbedderConfig, "reranker": RerankerConfig}

_AT_LEAST_1 = ("dim", "pages", "queries", "rank", "alpha", "accumulate", "save_every", "evaluate_every", "reports")
_AT_LEAST_0 = (
    "steps",
    "limit",
    "workers",
    "negatives",
    "max_tokens",
    "warmup",
    "decay",
    "weight_decay",
    "exit",
    "letters",
    "pretraining",
    "pretrained_layers",
    "mined",
    "pointing",
    "whole",
    "attention_distillation",
    "ranking",
    "hash_weight",
)
_AT_LEAST = {**dict.fromkeys(_AT_LEAST_1, 1), **dict.fromkeys(_AT_LEAST_0, 0)}
_POSITIVE = ("lr", "epochs", "clip", "temperature")
_SHARES = ("keep", "held_out", "strips")
#: Keys that may change when a run is resumed; a change of any other key makes it another run.
_FREE = {"steps", "save_every", "evaluate_every", "workers", "device", "validation", "recompute", "fused"}


def read(path: Path, task: str, notice: Notice = lambda _: None) -> TrainingConfig:
    """Read the config of ``mmrr train TASK``. ``notice`` gets one line for each key with a former name.

    Raises MmrrError that names the file, the key, the value found and what was expected.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MmrrError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:  # also a number of more than 4,300 digits
        raise MmrrError(f"{path} is not valid TOML: {error}") from error
    kind = _config_class(values, path, task)
    config = _build(kind, _current_names(kind, values, path, notice), path, "")
    _check(config, path)
    return config


def _config_class(values: dict[str, Any], path: Path, task: str) -> type[TrainingConfig]:
    """The dataclass for ``task`` and the keys. The key ``scorer`` is removed if it names miniReranker."""
    if task == "reranker":
        scorer = str(values.get("scorer", MINIRERANKER))
        if scorer != MINIRERANKER:
            return families.load(scorer).config_class(values, path)
        values.pop("scorer", None)
    if ("model" in values) == ("documents" in values):
        found = "both" if "model" in values else "neither"
        raise MmrrError(
            f"{path} has {found} of `model` and `documents`; expected `model` and `pairs` to fine-tune a published "
            "model, or `documents` to train a small model from random init"
        )
    if "documents" in values:
        return _SCRATCH[task]
    if task not in _FINETUNED:
        raise MmrrError(f"{path} names a `model`, but a reader is trained from random init; expected `documents`")
    return _FINETUNED[task]


def _current_names(kind: type, values: dict[str, Any], path: Path, notice: Notice) -> dict[str, Any]:
    """``values`` with every former name of a key of ``kind`` replaced by its name."""
    fields = {item.name for item in dataclasses.fields(kind)}
    renamed = {}
    for key, value in values.items():
        name = ALIASES.get(key, key)
        if name == key or name not in fields:
            renamed[key] = value
            continue
        if name in values:
            raise MmrrError(f"{path} has both `{key}` and `{name}`, two names of one key; remove `{key}`")
        notice(f"{path}: `{key}` is now called `{name}`")
        renamed[name] = value
    return renamed


def with_steps(config: TrainingConfig, steps: int) -> TrainingConfig:
    """The same config with another number of steps."""
    return dataclasses.replace(config, steps=steps)  # type: ignore[type-var]


def begin(run: Path, task: str, config: TrainingConfig) -> None:
    """Write the task and config of a run to ``run.json``.

    Raises MmrrError if the folder holds the state of a run with another task, config or number of processes.
    """
    now = {"task": task, "processes": world_size(), **_as_json(config)}
    run.mkdir(parents=True, exist_ok=True)
    file = run / "run.json"
    if file.exists() and RunFolder(run).state.exists():
        try:
            stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MmrrError(f"{file} is damaged; use another run folder") from error
        then = {ALIASES.get(key, key): value for key, value in stored.items()}
        for key in now:
            if key not in _FREE and then.get(key, now[key]) != now[key]:
                raise MmrrError(
                    f"{run} was begun with {key} = {then[key]!r}, now it is {now[key]!r}; "
                    "use another run folder, or the same config"
                )
    write_atomically(file, json.dumps(now, indent=1, ensure_ascii=False) + "\n")


def _as_json(config: TrainingConfig) -> dict[str, Any]:
    text = json.dumps(dataclasses.asdict(config), default=str)  # type: ignore[call-overload]
    values: dict[str, Any] = json.loads(text)
    return values


def _build(kind: type[T], values: Mapping[str, Any], path: Path, prefix: str) -> T:
    """An instance of the dataclass ``kind``; ``prefix`` is the name of the TOML table, for error messages."""
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise MmrrError(f"{path}: unknown key {', '.join(prefix + key for key in unknown)}; valid: {', '.join(fields)}")
    hints = get_type_hints(kind)
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise MmrrError(f"{path}: no key `{prefix}{name}`, and it has no default")
    return kind(**{name: _convert(hints[name], value, path, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, path: Path, name: str) -> Any:
    """A TOML value as the type of its field. Raises MmrrError for another type. ``Any``: ``hint`` is the type."""
    if get_origin(hint) in (Union, types.UnionType):  # X | None: TOML has no null, so the value is an X
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(inner, item, path, name) for item in items)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, path, name + ".")  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str) and value:
        return _from_config(path, value)
    if hint is ModelName and isinstance(value, str):
        folder = _from_config(path, value)
        return ModelName(str(folder)) if value and folder.is_dir() else ModelName(value)
    if hint is DataName and isinstance(value, str):
        file = _from_config(path, value)
        return DataName(file if file.exists() or not is_published(value) else Path(value))
    if isinstance(value, int | float) and not abs(value) < 2**63:
        raise MmrrError(f"{path}: {name} is {str(value)[:20]}; expected a number below 2^63")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    a_name = "a path or a Hub id"
    expected = {Path: "a path", ModelName: a_name, DataName: a_name, float: "a number", int: "a whole number"}
    what = expected.get(hint) or {str: "a text", bool: "true or false"}.get(hint, "a table")
    raise MmrrError(f"{path}: {name} = {value!r}; expected {what}")


def _from_config(path: Path, name: str) -> Path:
    """``name`` as an absolute path from the config's folder, so that a run can be resumed from any folder."""
    return Path(os.path.abspath(path.parent / expand_user(Path(name))))


def _check(config: TrainingConfig, path: Path) -> None:
    """Raises MmrrError for a value out of range and for keys that do not fit together."""
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), item.name
        if value is None or not isinstance(value, int | float):
            continue
        if name in _AT_LEAST and value < _AT_LEAST[name]:
            raise MmrrError(f"{path}: {name} = {value}; expected {_AT_LEAST[name]} or more")
        if name in _POSITIVE and not value > 0:
            raise MmrrError(f"{path}: {name} = {value}; expected a number above 0")
        if name in _SHARES and not (0 < value <= 1 if name == "keep" else 0 <= value < 1):
            raise MmrrError(f"{path}: {name} = {value}; expected a share")
    if isinstance(config, RerankerConfig) and config.keep is not None and config.keep < 1 and not config.embedder:
        raise MmrrError(f"{path}: keep = {config.keep} needs an `embedder`; its attention selects the tokens")
    if isinstance(config, RerankerConfig) and config.loss not in ("answers", "vocabulary"):
        raise MmrrError(f"{path}: loss = {config.loss!r}; expected answers or vocabulary")
    if isinstance(config, FinetuneConfig) and config.dtype not in ("auto", "bfloat16", "float32"):
        raise MmrrError(f"{path}: dtype = {config.dtype!r}; expected auto, bfloat16 or float32")
