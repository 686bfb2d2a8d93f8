"""Finds a family (backbone, embedder, scorer) by its module name and parses its options. No table to edit."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from mmrr.errors import MmrrError

T = TypeVar("T")


def names(kind: str) -> list[str]:
    """The families of a kind (``backbones``, ``embedders``, ``scorers``): its modules, without importing them."""
    package = importlib.import_module(f"mmrr.{kind}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Import one family. Raises MmrrError naming the families there are."""
    if name not in names(kind):
        raise MmrrError(f"no {kind[:-1]} family '{name}'; there is: {', '.join(names(kind))}")
    return importlib.import_module(f"mmrr.{kind}.{name}")


def embedder(config: dict[str, Any]) -> str:
    """The embedder family of a checkpoint by its config.json: as its architecture says, or else its model type.

    Raises MmrrError naming the families there are.
    """
    said = [str(name).lower() for name in (*(config.get("architectures") or ()), config.get("model_type"))]
    known = names("embedders")
    for name in said:
        if name in known:
            return name
    raise MmrrError(f"no embedder family for a '{config.get('model_type')}' model; there is: {', '.join(known)}")


def parse_options(cls: type[T], pairs: dict[str, str]) -> T:
    """Build a frozen options dataclass from ``key=value`` strings. Raises MmrrError naming the valid options."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    unknown = sorted(set(pairs) - fields)
    if unknown:
        raise MmrrError(f"unknown option {', '.join(unknown)}; valid options: {', '.join(sorted(fields)) or 'none'}")
    values: dict[str, Any] = {}
    for key, text in pairs.items():
        try:
            values[key] = _convert(hints[key], text)
        except ValueError:
            raise MmrrError(f"option {key}={text}: expected {hints[key]}") from None
    return cls(**values)


def _convert(hint: Any, text: str) -> Any:
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)
