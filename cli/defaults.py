"""Default values of options from files: ``mmrr.toml`` of the current folder, then the user's file.

Each file has one table::

    [mmrr]
    work = "~/mmrr-work"
    scorer-model = "reader-reranker"
    device = "cuda"

A flag wins over the environment, the environment over the project's file, and that over the user's file.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import typer

from mmrr.config import FirstStage, Language, OcrMode
from mmrr.errors import MmrrError

from . import options as o

PROJECT_FILE = Path("mmrr.toml")
_TABLE = "mmrr"
#: Key of the table -> its type, or its allowed values.
KEYS: dict[str, type | tuple[str, ...]] = {
    "work": str,
    "embedder": str,
    "embedder-revision": str,
    "text-embedder": str,
    "text-embedder-revision": str,
    "scorer": str,
    "scorer-model": str,
    "scorer-revision": str,
    "keep": float,
    "band": str,
    "codec": get_args(o.CodecName),
    "exit-layer": int,
    "calibration": str,
    "fuse": float,
    "first-stage": get_args(FirstStage),
    "channels": str,
    "language": get_args(Language),
    "candidates": int,
    "renderer": get_args(o.RendererName),
    "dpi": int,
    "max-tokens": int,
    "ocr": get_args(OcrMode),
    "ocr-language": str,
    "convert": bool,
    "device": str,
    "dtype": get_args(o.DtypeName),
    "workers": int,
    "memory-budget": str,
    "resident": str,
}


@dataclass(frozen=True)
class Defaults:
    """The values of the files by key, and the file of each."""

    values: dict[str, object] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Effective:
    """One default as a command would use it."""

    key: str
    value: object
    source: str  # flag, environment, file, built-in
    detail: str  # the environment variable or the file, else ""


def user_file() -> Path:
    """The user's file. ``MMRR_CONFIG`` names another one."""
    named = os.environ.get("MMRR_CONFIG")
    return Path(named) if named else Path(typer.get_app_dir("mmrr")) / "config.toml"


def read() -> Defaults:
    """Both files; the project's file wins. Raises MmrrError for a key or a value that is not valid."""
    found = Defaults()
    for path in (user_file(), PROJECT_FILE):
        for key, value in _read_file(path).items():
            found.values[key], found.files[key] = value, path
    return found


def _read_file(path: Path) -> dict[str, object]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:  # also text that is not UTF-8, and a number of more than 4,300 digits
        raise MmrrError(f"{path}: found no valid TOML ({error}); correct the file or delete it") from error
    except IsADirectoryError as error:
        raise MmrrError(f"{path} is a folder; expected a TOML file") from error
    outside = sorted(set(tables) - {_TABLE})
    if outside:
        raise MmrrError(f"{path}: found '{outside[0]}' outside the table [mmrr]; write it below a line [mmrr]")
    table = tables.get(_TABLE, {})
    if not isinstance(table, dict):
        raise MmrrError(f"{path}: found mmrr = {table!r}; expected a table that starts with the line [mmrr]")
    return {key: _checked(path, key, value) for key, value in table.items()}


def _checked(path: Path, key: str, value: object) -> object:
    """The value of a key, with ``~/`` replaced by the home folder."""
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`mmrr config` lists the keys"
        raise MmrrError(f"{path}: unknown key '{key}' in the table [mmrr]; {hint}")
    kind = KEYS[key]
    if key == "ocr" and isinstance(value, bool):  # the option was a switch
        value = "auto" if value else "never"
    if isinstance(kind, tuple):
        if value not in kind:
            raise MmrrError(f"{path}: found {key} = {value!r}; expected one of {', '.join(kind)}")
        return value
    if isinstance(value, int | float) and not abs(value) < 2**31:
        raise MmrrError(f"{path}: found {key} = {str(value)[:20]}; expected a number below 2^31")
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise MmrrError(f"{path}: found {key} = {value!r}; expected a value of type {_NAMES[kind]}")
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean (true or false)"}


# Any: commands are Click objects, which have no public name in every version of Typer.
def default_map(commands: Mapping[str, Any], values: dict[str, object]) -> dict[str, Any]:
    """Click's default_map: for every command, the defaults of the options that it has; nested for groups."""
    found: dict[str, Any] = {}
    for name, command in commands.items():
        repeatable = {parameter.name: getattr(parameter, "multiple", False) for parameter in command.params}
        own = {key.replace("-", "_"): value for key, value in values.items()}
        found[name] = {key: [value] if repeatable[key] else value for key, value in own.items() if key in repeatable}
        found[name] |= default_map(getattr(command, "commands", {}), values)
    return found


def effective(context: typer.Context) -> list[Effective]:
    """The value of every key and its origin, from the parameters of ``mmrr config``."""
    files = context.find_object(Defaults) or Defaults()
    variables = {parameter.name: parameter.envvar for parameter in context.command.params}
    found = []
    for key in KEYS:
        name = key.replace("-", "_")
        origin = context.get_parameter_source(name)
        source, detail = _SOURCES.get(origin.name if origin else "", "built-in"), ""
        if source == "environment":
            detail = str(variables[name])
        elif source == "file":
            detail = str(files.files[key])
        found.append(Effective(key, context.params[name], source, detail))
    return found


#: Click's names of where a value comes from.
_SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "environment", "DEFAULT_MAP": "file"}
