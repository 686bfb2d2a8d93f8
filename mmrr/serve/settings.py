"""What a server is told when it starts: workspaces, models, limits, who may use it."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmrr.config import Machine, Render
from mmrr.errors import MmrrError


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a request may ask for, and that may wait."""

    body_bytes: int = 32 << 20  # of a request's body
    upload_bytes: int = 256 << 20  # of the body of an upload
    query_chars: int = 1_000
    text_chars: int = 200_000  # of one document that is text
    documents: int = 256  # of one rerank request
    candidates: int = 200  # of one search
    image_pixels: int = 64_000_000
    pages: int = 5_000  # of one uploaded document
    seconds: float = 60.0  # from the arrival of a request to its answer
    queue: int = 128  # requests that wait or are computed
    requests: int = 1_000  # requests of all kinds at once; their bodies are in memory
    together: int = 16  # requests that are scored together
    step: int = 8  # images or texts that are prepared before another request has its turn
    jobs: int = 32  # uploads and removals that wait


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's configuration."""

    workspaces: Mapping[str, Path]  # by name; the first one is the default
    scorer_model: str | None = None  # of images and texts in requests; None: that of the default workspace's caches
    scorer: str = "minireranker"
    scorer_revision: str | None = None
    image_cache: Path | None = None  # folder of the caches of images in requests; None: in memory alone
    machine: Machine = field(default_factory=Machine)
    render: Render = field(default_factory=Render)  # of uploaded documents
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()  # API keys
    read_only: bool = False
    fetch_hosts: frozenset[str] = frozenset()  # hosts that images may be fetched from
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Raise MmrrError if the server would be open to others without an API key."""
        if not self.workspaces and not self.scorer_model:
            raise MmrrError("nothing to serve; expected --work WORKSPACE or --scorer-model MODEL")
        if not self.keys and not is_loopback(self.host):
            raise MmrrError(
                f"--host {self.host} can be reached by others, and there is no API key; expected --api-key-file FILE "
                "or the environment variable MMRR_API_KEY"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_workspaces(values: list[str]) -> dict[str, Path]:
    """{name: folder} of ``PATH`` and ``NAME=PATH``; the name of a plain path is that of its folder.

    Raises MmrrError for a name that is given twice.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, equals, folder = value.partition("=")
        if not equals or "/" in name:  # a path that contains "="
            name, folder = Path(value).expanduser().absolute().name, value
        if not name or not folder:
            raise MmrrError(f"--work '{value}': expected PATH or NAME=PATH")
        if name in found:
            raise MmrrError(f"--work names two workspaces '{name}'; give them names with NAME=PATH")
        found[name] = Path(folder)
    return found


def read_keys(file: Path | None, from_environment: str | None) -> tuple[str, ...]:
    """The API keys: one a line in the file, else the value of the environment variable.

    Raises MmrrError if the file cannot be read or has no key, and for a key that no header can carry.
    """
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MmrrError(f"--api-key-file {file} cannot be read; expected a file with a key in each line") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise MmrrError(f"--api-key-file {file} has no key; expected one a line")
    else:
        keys = [from_environment.strip()] if from_environment and from_environment.strip() else []
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or len(key) < 8:
            raise MmrrError("an API key is too short or has other signs; expected 8 or more ASCII letters and digits")
    return tuple(keys)
