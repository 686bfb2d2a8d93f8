"""Checks a family's module against the Protocols of ``mmrr.contracts``: one clear line for the first difference."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Literal, get_origin, get_type_hints

from mmrr import contracts
from mmrr.errors import MmrrError

PAGE = "docs/writing-a-scorer.md"
#: For each kind of family: its Protocol, the class of SPEC, the Protocol of what ``load`` returns, and the Protocols
#: of the optional abilities of that.
_KINDS: dict[str, tuple[type, type, type, tuple[type, ...]]] = {
    "scorers": (
        contracts.ScorerFamily,
        contracts.ScorerSpec,
        contracts.Scorer,
        (
            contracts.SupportsUncached,
            contracts.SupportsDense,
            contracts.SupportsAttention,
            contracts.SupportsNarrowing,
            contracts.SupportsVisualQueries,
        ),
    ),
    "embedders": (
        contracts.EmbedderFamily,
        contracts.EmbedderSpec,
        contracts.Embedder,
        (contracts.EmbedsVisualQueries, contracts.SupportsWordVectors),
    ),
    "text_embedders": (contracts.TextEmbedderFamily, contracts.TextEmbedderSpec, contracts.TextEmbedder, ()),
}
#: The types of options, besides a Literal of strings.
_TYPES = (int, float, str, bool)
#: How similar a name must be to count as a misspelling: of a missing member, and of an optional one.
_SIMILAR, _NEARLY_EQUAL = 0.6, 0.85


def check(kind: str, name: str, module: ModuleType) -> None:
    """Raise MmrrError if the module ``mmrr/<kind>/<name>.py`` is not a family of its kind."""
    file = f"mmrr/{kind}/{name}.py"
    family, spec, loaded, abilities = _KINDS[kind]
    for member in family.__annotations__:  # SPEC and the classes of options
        if not hasattr(module, member):
            raise _missing(file, member, module)
    if not isinstance(module.SPEC, spec):
        raise _problem(file, f"SPEC is a {type(module.SPEC).__name__}; expected {spec.__name__}(...)")
    for member in family.__annotations__:
        if member != "SPEC":
            _check_options(file, member, getattr(module, member))
    for function in _functions(family):
        _check_function(file, function, module)
    _check_loaded(file, module, loaded, abilities)


def has_ability(module: Any, ability: type) -> bool:  # Any: a module, or the Protocol of its kind
    """Whether what a checked family's ``load`` returns has an optional ability. Loads no checkpoint."""
    cls = get_type_hints(module.load)["return"]
    return all(hasattr(cls, function.__name__) for function in _functions(ability))


def _check_options(file: str, name: str, cls: object) -> None:
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls) and _is_frozen(cls)):
        raise _problem(file, f"{name} is not a frozen dataclass; expected @dataclass(frozen=True)")
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if hint not in _TYPES and get_origin(hint) is not Literal:
            raise _problem(
                file,
                f"option {name}.{field.name} is of type {hint}; expected int, float, str, bool or a Literal of strings",
            )
        if field.default is dataclasses.MISSING:
            raise _problem(
                file, f"option {name}.{field.name} has no default; expected field(default=..., metadata=...)"
            )
        if not field.metadata.get("help"):
            raise _problem(file, f'option {name}.{field.name} has no help; expected metadata={{"help": "..."}}')


def _is_frozen(cls: type) -> bool:
    parameters = vars(cls).get("__dataclass_params__")
    return parameters is not None and bool(parameters.frozen)


def _check_function(file: str, expected: FunctionType, owner: ModuleType | type) -> None:
    """Check that the module or class has the function, with the Protocol's parameter names."""
    name = expected.__name__
    found = getattr(owner, name, None)
    if found is None:
        raise _missing(file, name, owner)
    is_class = isinstance(owner, type)
    where = f"{owner.__name__}.{name}" if is_class else name
    if not inspect.isroutine(found):
        raise _problem(file, f"{where} is not a function; expected {_signature(expected)}")
    parameters = list(inspect.signature(found).parameters)[is_class:]
    if parameters != list(inspect.signature(expected).parameters)[1:]:
        raise _problem(file, f"{where} is {name}({', '.join(parameters)}); expected {_signature(expected)}")


def _check_loaded(file: str, module: ModuleType, loaded: type, abilities: tuple[type, ...]) -> None:
    """Check the class that ``load`` is annotated to return."""
    try:
        cls = get_type_hints(module.load).get("return")
    except NameError as error:
        raise _problem(file, f"the annotations of load cannot be read ({error})") from error
    if not isinstance(cls, type):
        kind = loaded.__name__.lower()
        raise _problem(file, f"load has no class as its return annotation; expected -> the class of the {kind}")
    for function in _functions(loaded):
        _check_function(file, function, cls)
    for ability in abilities:
        for function in _functions(ability):
            if hasattr(cls, function.__name__):
                _check_function(file, function, cls)
            elif near := difflib.get_close_matches(function.__name__, _names(cls), 1, _NEARLY_EQUAL):
                raise _problem(
                    file,
                    f"{cls.__name__}.{near[0]} is no member of a family; its name is close to the optional "
                    f"{_signature(function)}",
                )


def _functions(protocol: type) -> Iterator[FunctionType]:
    for name, value in vars(protocol).items():
        if isinstance(value, FunctionType) and not name.startswith("_"):
            yield value


def _signature(expected: FunctionType) -> str:
    parameters = list(inspect.signature(expected).parameters)[1:]
    return f"{expected.__name__}({', '.join(parameters)})"


def _names(owner: ModuleType | type) -> list[str]:
    """The public names of a class, or the constants, functions and classes that a module defines itself."""
    names = [name for name in dir(owner) if not name.startswith("_")]
    if isinstance(owner, type):
        return names
    return [
        name for name in names if name.isupper() or getattr(getattr(owner, name), "__module__", None) == owner.__name__
    ]


def _missing(file: str, member: str, owner: ModuleType | type) -> MmrrError:
    where = f"class {owner.__name__} has no" if isinstance(owner, type) else "no"
    members = {name for family, *_ in _KINDS.values() for name in (*family.__annotations__, *vars(family))}
    by_lower_case = {name.lower(): name for name in _names(owner) if name not in members}
    near = difflib.get_close_matches(member.lower(), by_lower_case, 1, _SIMILAR)
    hint = f" (its '{by_lower_case[near[0]]}' has the nearest name)" if near else ""
    return _problem(file, f"{where} member '{member}'{hint}")


def _problem(file: str, what: str) -> MmrrError:
    return MmrrError(f"{file}: {what}; see {PAGE}")
