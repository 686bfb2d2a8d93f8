"""Finds a model family (backbone, embedder, scorer) by its module's name, checks it and parses its options.

There is no table of families: every module of the folder is one, except helpers, whose names begin with an underscore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import pkgutil
import traceback
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints, overload

from mmrr import contracts
from mmrr.contracts import EmbedderFamily, ModelConfig, Options, ScorerFamily, TextEmbedderFamily
from mmrr.errors import MmrrError, UnsupportedQueryError
from mmrr.modeling import contract_check

OptionsT = TypeVar("OptionsT", bound=Options)
#: Folders of families below ``mmrr/``. Scorers and embedders have a checked contract.
Kind = Literal["backbones", "embedders", "text_embedders", "scorers", "training.families"]
#: The kinds that ``mmrr models`` lists.
Described = Literal["embedders", "text_embedders", "scorers"]
_SINGULAR = {
    "backbones": "backbone",
    "embedders": "embedder",
    "text_embedders": "text embedder",
    "scorers": "scorer",
    "training.families": "training",
}
#: The model type of a family that takes every checkpoint which no other family names.
_ANY = "*"
#: The stage that each class of options belongs to, by the command that takes them.
_STAGES = {
    "scorers": {"Prepare": "precache", "Score": "rerank"},
    "embedders": {"Prepare": "index", "Search": "retrieve"},
    "text_embedders": {"Prepare": "index"},
}
_log = logging.getLogger(__name__)
#: The families that met their contract.
_CHECKED: weakref.WeakSet[ModuleType] = weakref.WeakSet()


def names(kind: Kind) -> list[str]:
    """The families of a kind: its modules without a leading underscore. Imports none of them."""
    package = importlib.import_module(f"mmrr.{kind}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if not name.startswith("_"))


@overload
def load(kind: Literal["scorers"], name: str) -> ScorerFamily: ...
@overload
def load(kind: Literal["embedders"], name: str) -> EmbedderFamily: ...
@overload
def load(kind: Literal["text_embedders"], name: str) -> TextEmbedderFamily: ...
@overload
def load(kind: Described, name: str) -> ScorerFamily | EmbedderFamily | TextEmbedderFamily: ...
@overload
def load(kind: Literal["backbones", "training.families"], name: str) -> ModuleType: ...
def load(kind: Kind, name: str) -> ScorerFamily | EmbedderFamily | TextEmbedderFamily | ModuleType:
    """Import one family and check its contract.

    Raises MmrrError for an unknown name, with the known ones, for a module that cannot be imported, and for a module
    that does not meet its contract.
    """
    if name not in names(kind):
        raise MmrrError(f"no {_SINGULAR[kind]} family '{name}'; expected one of: {', '.join(names(kind))}")
    module = _import(kind, name)
    if kind in _STAGES and module not in _CHECKED:  # the check takes milliseconds, and a query asks for five families
        contract_check.check(kind, name, module)
        _CHECKED.add(module)
    return module


def expect_visual(kind: Literal["scorers", "embedders"], name: str) -> None:
    """Raise UnsupportedQueryError with the families that do, if a family takes no queries with images."""
    ability = contracts.SupportsVisualQueries if kind == "scorers" else contracts.EmbedsVisualQueries
    if contract_check.has_ability(_import(kind, name), ability):
        return
    able = []
    for other in names(kind):
        with contextlib.suppress(MmrrError):  # a family that cannot be imported
            if contract_check.has_ability(_import(kind, other), ability):
                able.append(other)
    raise UnsupportedQueryError(f"the {_SINGULAR[kind]} {name} takes no image as a query; these do: {', '.join(able)}")


def _import(kind: Kind, name: str) -> ModuleType:
    """Import the module of a family. A fault in its own file is an MmrrError: its author can mend it."""
    try:
        return importlib.import_module(f"mmrr.{kind}.{name}")
    except MmrrError:
        raise
    except Exception as error:
        found = importlib.util.find_spec(f"mmrr.{kind}.{name}")
        path = found.origin if found else None
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame.lineno for frame in frames if frame.filename == path]
        if isinstance(error, SyntaxError) and error.filename == path:
            line, what = error.lineno, error.msg
        elif own and (isinstance(error, ImportError) or frames[-1].filename == path):
            line, what = own[-1], str(error)
        else:
            raise
        file = f"mmrr/{kind.replace('.', '/')}/{name}.py"
        text = f"{type(error).__name__}: {' '.join(what.split())}"
        raise MmrrError(f"{file}, line {line}: {text}; see {contract_check.PAGE}") from error


def embedder(config: ModelConfig) -> str:
    """The name of the embedder family of a checkpoint, from the ``architectures`` of its config.json or its model type.

    Raises MmrrError naming the known families.
    """
    named = config.get("architectures")
    candidates = [str(name).lower() for name in (*(named if isinstance(named, list) else ()), config.get("model_type"))]
    known = names("embedders")
    for name in candidates:
        if name in known:
            return name
    raise MmrrError(f"no embedder family for a '{config.get('model_type')}' model; expected one of: {', '.join(known)}")


def text_embedder(model_type: str) -> str:
    """The name of the text embedder family of a checkpoint: the one that names its model type, else that of any type.

    Raises MmrrError if no family takes it.
    """
    known = {name: load("text_embedders", name).SPEC.model_types for name in names("text_embedders")}
    for wanted in (model_type, _ANY):
        for name, model_types in known.items():
            if wanted in model_types:
                return name
    raise MmrrError(f"no text embedder family for a '{model_type}' model; expected one of: {', '.join(known)}")


# Options


def parse_options(cls: type[OptionsT], pairs: Mapping[str, str]) -> OptionsT:
    """Build a family's options from ``key=value`` strings.

    A former name is accepted with a notice. Raises MmrrError naming the valid options or the expected type.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    former = {old: new for new, old in _former_names(cls).items()}
    hints = get_type_hints(cls)
    unknown = sorted(set(pairs) - fields - former.keys())
    if unknown:
        raise MmrrError(f"unknown option {', '.join(unknown)}; valid options: {', '.join(sorted(fields)) or 'none'}")
    values: dict[str, object] = {}
    for key, text in pairs.items():
        name = former.get(key, key)
        if name != key:
            _log.warning("option %s is now called %s", key, name)
        try:
            values[name] = _convert(hints[name], text)
        except ValueError:
            shown = text if len(text) <= 40 else f"{text[:30]}...({len(text)} characters)"
            raise MmrrError(f"option {key}={shown}: expected {_type_name(hints[name])}") from None
    return cast("type[Any]", cls)(**values)  # Any: each family has its own constructor


def stored_options(options: Options) -> dict[str, Any]:
    """Options as manifests store and hash them: a renamed option keeps its former name there."""
    former = _former_names(type(options))
    # Any: manifests hold JSON values.
    values: dict[str, Any] = dataclasses.asdict(options)
    return {former.get(name, name): value for name, value in values.items()}


def make_options(cls: type[OptionsT], values: Mapping[str, object]) -> OptionsT:
    """Options from values by name or former name, such as those of a manifest. Others keep their defaults.

    Raises TypeError for an option that the class does not have.
    """
    former = {old: new for new, old in _former_names(cls).items()}
    return cast("type[Any]", cls)(**{former.get(name, name): value for name, value in values.items()})


def _former_names(cls: type[Options]) -> dict[str, str]:
    fields = dataclasses.fields(cls)
    return {field.name: field.metadata["formerly"] for field in fields if "formerly" in field.metadata}


def _convert(hint: object, text: str) -> object:
    if get_origin(hint) is Literal and text in get_args(hint):
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint is int or hint is float or hint is str:
        value = hint(text)
        if isinstance(value, int | float) and not abs(value) < 2**31:
            raise ValueError(text)
        return value
    raise ValueError(text)


def _type_name(hint: object) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    return "true|false" if hint is bool else cast("type", hint).__name__


# Description


@dataclass(frozen=True, slots=True)
class OptionDescription:
    """One option of a family, as ``mmrr models`` prints it."""

    name: str
    type: str  # int, float, str, true|false, or the possible values with | between them
    default: object
    help: str
    stage: str  # the command that takes it: index, retrieve, precache or rerank


@dataclass(frozen=True, slots=True)
class FamilyDescription:
    """One family, as ``mmrr models`` prints it."""

    kind: str  # embedder, text embedder or scorer
    name: str
    summary: str  # the first line of the module's docstring
    checkpoints: tuple[str, ...]
    options: tuple[OptionDescription, ...]


def describe() -> tuple[list[FamilyDescription], list[str]]:
    """Every family of the described kinds with all its options, and one line for each that cannot be loaded.

    Imports them all.
    """
    found, errors = [], []
    kinds: tuple[Described, ...] = ("embedders", "text_embedders", "scorers")
    for kind in kinds:
        for name in names(kind):
            try:
                found.append(_describe(kind, name))
            except MmrrError as error:
                errors.append(str(error))
    return found, errors


def _describe(kind: Described, name: str) -> FamilyDescription:
    family = load(kind, name)
    options = [option for cls, stage in _STAGES[kind].items() for option in _options(getattr(family, cls), stage)]
    summary = (family.__doc__ or "").strip().partition("\n")[0]
    return FamilyDescription(_SINGULAR[kind], name, summary, family.SPEC.checkpoints, tuple(options))


def _options(cls: type[Options], stage: str) -> list[OptionDescription]:
    hints = get_type_hints(cls)
    return [
        OptionDescription(field.name, _type_name(hints[field.name]), field.default, field.metadata["help"], stage)
        for field in dataclasses.fields(cls)
    ]
