"""The named benchmarks: where each is published, its official measure, and what it tells a model to do.

They are entries of ``benchmarks.toml``, whose head explains the keys. A file of the user's own has the same form.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from mmrr.errors import MmrrError

Form = Literal["auto", "beir", "pairs", "mmdocir"]
_FORMS = ("auto", "beir", "pairs", "mmdocir")


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark. Sizes are those of the published set, for ``mmrr eval --list``."""

    name: str  # GROUP/SET; of an unnamed set its Hub id or its path
    hub: str  # Hub id, or the path of a folder or file
    form: Form = "auto"
    split: str = "test"
    measure: str = ""  # as ir_measures writes it; "": nDCG@5 for page images, nDCG@10 for text
    instruction: str = ""
    configs: tuple[str, ...] = ()  # the parts that count without --config; (): all
    pages: int = 0
    queries: int = 0
    licence: str = ""
    text: bool = False
    image_queries: bool = False
    ignore_identical: bool = False
    about: str = ""
    note: str = ""

    @property
    def command(self) -> str:
        """What runs it."""
        return f"mmrr eval {self.name}"


@lru_cache(maxsize=1)
def entries() -> dict[str, Entry]:
    """The named benchmarks, in the order of the file."""
    path = Path(__file__).with_name("benchmarks.toml")
    return {entry.name: entry for entry in _entries(tomllib.loads(path.read_text("utf-8")), path.name)}


def find(name: str) -> Entry:
    """The benchmark of a name, of a TOML file with one entry, of a folder or file, or of a Hub id.

    Raises MmrrError for none of these, and for the name of a group: with the names that exist.
    """
    known = entries()
    if name in known:
        return known[name]
    of_group = [one for one in known if one.startswith(f"{name}/")]
    if of_group:
        raise MmrrError(f"{name} is a group of benchmarks: name one of {', '.join(of_group)}")
    path = Path(name).expanduser()
    if path.suffix == ".toml" and path.is_file():
        return _of_file(path)
    group = name.partition("/")[0]
    is_group = any(one.startswith(f"{group}/") for one in known)
    if path.exists() or (name.count("/") == 1 and not is_group):
        return Entry(name, name)
    close = difflib.get_close_matches(name, known, 3, 0.4)
    hint = f"; close: {', '.join(close)}" if close else ""
    raise MmrrError(
        f"found no benchmark, folder or file {name}, expected a name of mmrr eval --list, a Hub id or a path{hint}"
    )


def _of_file(path: Path) -> Entry:
    """The entry of a user's file. A relative ``hub`` that exists counts from the folder of the file."""
    try:
        found = list(_entries(tomllib.loads(path.read_text("utf-8-sig")), path.name))
    except (OSError, ValueError) as error:
        raise MmrrError(f"cannot read {path}: {error}") from error
    if len(found) != 1:
        raise MmrrError(f"{path.name}: found {len(found)} benchmarks, expected one")
    own = path.parent / found[0].hub
    return dataclasses.replace(found[0], hub=str(own)) if own.exists() else found[0]


def _entries(groups: Mapping[str, Any], file: str) -> Iterator[Entry]:  # Any: values of TOML
    for group, values in groups.items():
        if not isinstance(values, dict):
            raise MmrrError(f"{file}: found {group} outside of a table, expected [NAME] and its keys")
        sets = values.get("sets")
        shared = {key: value for key, value in values.items() if key != "sets"}
        if sets is None:
            yield _entry(group, shared, file)
            continue
        for name, own in sets.items():
            yield _entry(f"{group}/{name}", {**shared, **own}, file)


def _entry(name: str, values: Mapping[str, Any], file: str) -> Entry:
    kinds = {field.name.replace("_", "-"): field for field in dataclasses.fields(Entry) if field.name != "name"}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            raise MmrrError(f"{file}: {name} has the key {key}, expected one of {', '.join(kinds)}")
        field = kinds[key]
        found[field.name] = tuple(value) if isinstance(value, list) else value
        wanted = str if field.default is dataclasses.MISSING else type(field.default)
        if type(found[field.name]) is not wanted:
            raise MmrrError(f"{file}: {name} has {key} = {value!r}, expected a {wanted.__name__}")
    if not found.get("hub") or found.get("form", "auto") not in _FORMS:
        raise MmrrError(f"{file}: {name} needs hub, a data set, and a form of {', '.join(_FORMS)}")
    return Entry(name, **found)
