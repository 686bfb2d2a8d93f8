"""What is trained, as a TOML file says it: from nothing on drawn pages, or a published model on pairs.

Knows keys, types and ranges; nothing of models. Every default stands here, or where this module takes it from.
Relative paths count from the config file's folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

from mmrr.config import Render
from mmrr.errors import MmrrError
from mmrr.modeling import families
from mmrr.random_checkpoint import Shape
from mmrr.training.loop import RunFolder, Schedule
from mmrr.workspace.files import write_atomically

TASKS = ("reader", "embedder", "reranker")
#: What a run folder holds in the end: a checkpoint trained from nothing, or a LoRA adapter.
CHECKPOINT, ADAPTER = "checkpoint", "adapter"

#: A checkpoint: the path of a folder, or a Hub id.
ModelName = NewType("ModelName", str)
_SCHEDULE = Schedule(steps=0, lr=0.0)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchConfig:
    """A small model of our own, trained on pages drawn from documents."""

    documents: tuple[Path, ...]  # JSON Lines of texts, see docs/training.md
    held_out: float = 0.1  # share of the documents that is never drawn for training
    seed: int = 0
    pool: Path | None = None  # where drawn pages are kept; default: in the run's folder
    shape: Shape = field(default_factory=Shape)
    steps: int = 4000
    lr: float = 1e-3
    warmup: int = _SCHEDULE.warmup  # steps
    decay: float = _SCHEDULE.decay  # share of the steps over which the rate falls
    save_every: int = _SCHEDULE.save_every
    evaluate_every: int = 500
    workers: int = 1  # processes that prepare batches
    reader: Path | None = None  # the run of a trained reader; for a reader: one to go on from
    reports: int = 1000  # drawn reports to train on

    result: ClassVar[str] = CHECKPOINT

    def schedule(self) -> Schedule:
        return Schedule(self.steps, self.lr, warmup=self.warmup, decay=self.decay, save_every=self.save_every)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchReader(ScratchConfig):
    """Its vision tower."""

    letters: int = 2000  # first steps, on plain snippets of text
    hash_weight: float = 0.1  # weight of the words' loss beside the characters'
    keep_heads: bool = False  # with `reader`: only the tower learns, and its features keep their meaning


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchMatcher(ScratchConfig):
    """A language model on the features of a trained reader."""

    start: Path | None = None  # a run whose weights this one goes on from, instead of spelling; default: fresh weights
    spelling: int = 1500  # steps that teach the first layers to spell
    spelled: int = 2  # those layers; the one after them is taught to point
    strips: float = 0.5  # share of the steps on strips of pages, as all of spelling is
    pages: int = 4  # a batch
    queries: int = 8  # a page
    embedder: Path | None = None  # the run of a trained embedder, which mines and prunes, or whose attention is held
    mined: int = 0  # a batch is a page and, for each of its queries, one of the first so many that `embedder` finds


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchEmbedder(ScratchMatcher):
    """Contrast: a query's page among the batch's, by a vector for each word and each cell."""

    dim: int = 128  # numbers in a vector
    pointing: float = 1.0  # weight of the loss on the cells in which a word stands
    whole: float = 0.3  # weight of the same contrast by the last token's state, whose attention prunes
    held: float = 0.0  # weight of the loss that keeps the last token's attention what it is in `embedder`
    fused: bool = False  # compile a layer's small steps into few; needs a C++ compiler


@dataclass(frozen=True, slots=True, kw_only=True)
class ScratchReranker(ScratchMatcher):
    """Yes or no, with band, exit and pruning on."""

    band: str = "2:5"
    exit: int = 5
    keep: float = 0.5  # share of visual tokens
    pointing: float = 1.0  # weight of the pointing loss
    ranking: float = 0.0  # weight of the loss on which of a batch's pages answers a query; all are asked all queries


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """A published Qwen3-VL, fine-tuned by LoRA on pairs. The defaults are the paper's where it names a value."""

    model: ModelName
    revision: str = ""  # of the model on the Hub
    pairs: Path
    images: Path | None = None  # folder that image paths count from; default: the pairs file's
    validation: Path | None = None  # pairs to measure on, never trained on
    seed: int = 0
    rank: int = 16
    alpha: int = 32
    epochs: float = 1.0
    steps: int = 0  # of the optimiser; 0: as many as the epochs take
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
    exit: int = 0  # layers that run; 0: where the band ends
    embedder: ModelName = ModelName("")  # whose attention prunes; default: no pruning
    embedder_revision: str = ""
    keep: float | None = None  # share of visual tokens; default: as in mmrr precache with an embedder, else 1
    pages: int = 2  # a batch and process
    queries: int = 8  # a page, at most: its pairs are scored together


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderConfig(FinetuneConfig):
    """Contrast: a query's page among the batch's and among its own hard negatives."""

    query_instruction: str = ""  # default: the model family's
    queries: int = 4  # a batch and process, each with its page
    negatives: int = 1  # pages a query, of those that the pairs call not relevant
    temperature: float = 0.05


_SCRATCH: dict[str, type[Any]] = {"reader": ScratchReader, "embedder": ScratchEmbedder, "reranker": ScratchReranker}
_FINETUNED: dict[str, type[Any]] = {"embedder": EmbedderConfig, "reranker": RerankerConfig}
#: Or that of a module in ``training.scorers``: a frozen dataclass with ``scorer``, ``steps`` and ``result``.
Config = Any

_AT_LEAST = {
    **dict.fromkeys(
        ("dim", "pages", "queries", "rank", "alpha", "accumulate", "save_every", "evaluate_every", "reports"), 1
    ),
    **dict.fromkeys(
        (
            "steps",
            "workers",
            "negatives",
            "max_tokens",
            "warmup",
            "decay",
            "weight_decay",
            "exit",
            "letters",
            "spelling",
            "spelled",
            "mined",
        ),
        0,
    ),
    **dict.fromkeys(("pointing", "whole", "held", "ranking", "hash_weight"), 0),
}
_POSITIVE = ("lr", "epochs", "clip", "temperature")
_SHARES = ("keep", "held_out", "strips")
#: May differ when a run goes on; anything else would make it another run.
_FREE = {"steps", "save_every", "evaluate_every", "workers", "device", "validation", "recompute", "fused"}


def read(path: Path, task: str) -> Config:
    """Read the config of ``mmrr train TASK``. Raises MmrrError naming the file, the key, and what was expected."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise MmrrError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise MmrrError(f"{path} is no valid TOML: {error}") from error
    if task == "reranker" and values.get("scorer", "minireranker") != "minireranker":
        config: Config = _build(families.load("training.families", str(values["scorer"])).Config, values, path, "")
        _check(config, path)
        return config
    if task == "reranker":
        values.pop("scorer", None)
    if ("model" in values) == ("documents" in values):
        found = "both" if "model" in values else "neither"
        raise MmrrError(
            f"{path} has {found} of `model` and `documents`: fine-tuning names a model and pairs, "
            "training from nothing names documents"
        )
    if "model" in values and task == "reader":
        raise MmrrError(f"{path} names a model: a reader is trained from nothing, on `documents`")
    config = _build((_FINETUNED if "model" in values else _SCRATCH)[task], values, path, "")
    _check(config, path)
    return config


def with_steps(config: Config, steps: int) -> Config:
    """The same config for another number of steps."""
    return dataclasses.replace(config, steps=steps)


def begin(run: Path, task: str, config: Config) -> None:
    """Note in ``run.json`` what a run was begun with. Raises MmrrError where the folder holds another run's state."""
    now = {"task": task, "processes": int(os.environ.get("WORLD_SIZE", "1")), **_plain(config)}
    run.mkdir(parents=True, exist_ok=True)
    file = run / "run.json"
    if file.exists() and RunFolder(run).state.exists():
        try:
            then = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MmrrError(f"{file} is damaged; use another --run folder") from error
        for key in now:
            if key not in _FREE and then.get(key, now[key]) != now[key]:
                raise MmrrError(
                    f"{run} was begun with {key} = {then[key]!r}, now it is {now[key]!r}; "
                    "use another --run folder, or the same config"
                )
    write_atomically(file, json.dumps(now, indent=1, ensure_ascii=False) + "\n")


def _plain(config: Config) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def _build(kind: type[T], values: dict[str, Any], path: Path, prefix: str) -> T:
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
    if get_origin(hint) in (Union, types.UnionType):  # X | None: TOML has no null, so a value is an X
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(inner, item, path, name) for item in items)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, path, name + ".")  # type: ignore[arg-type]
    if hint is Path and isinstance(value, str) and value:
        return _beside(path, value)
    if hint is ModelName and isinstance(value, str):
        beside = _beside(path, value)
        return ModelName(str(beside)) if value and beside.is_dir() else ModelName(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = {Path: "a path", ModelName: "a path or a Hub id", float: "a number", int: "a whole number"}
    what = expected.get(hint) or {str: "a text", bool: "true or false"}.get(hint, "a table")
    raise MmrrError(f"{path}: {name} = {value!r}; expected {what}")


def _beside(path: Path, name: str) -> Path:
    """As an absolute path: a run goes on from any folder."""
    return Path(os.path.abspath(path.parent / Path(name).expanduser()))


def _check(config: Config, path: Path) -> None:
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
        raise MmrrError(f"{path}: keep = {config.keep} needs an embedder, whose attention says which tokens to keep")
    if isinstance(config, FinetuneConfig) and config.dtype not in ("auto", "bfloat16", "float32"):
        raise MmrrError(f"{path}: dtype = {config.dtype!r}; training needs auto, bfloat16 or float32")
