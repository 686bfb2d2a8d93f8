"""What people see: progress on stderr, tables, and the one way a command opens a workspace and ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from mmrr.errors import MmrrError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_USERS_TO_FIX = (*_FULL, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)


def note(message: str) -> None:
    """A message for people: stderr."""
    typer.echo(message, err=True)


def emit(document: dict[str, Any]) -> None:
    """The one JSON document of a command: stdout."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=1))


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; nothing where there is nothing to do."""
    if total == 0:
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What the user can fix is one line and exit code 1; Ctrl-C is 130; a bug keeps its traceback."""
    try:
        yield
    except MmrrError as error:
        note(f"error: {printable(str(error))}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        note("stopped; what was finished is kept: the same command goes on from there")
        raise typer.Exit(130) from error
    except OSError as error:
        if error.errno not in _USERS_TO_FIX:
            raise
        what = "the disk is full" if error.errno in _FULL else str(error.strerror)
        where = f" at {error.filename}" if error.filename else ""
        kept = "; what was finished is kept: the same command goes on from there" if error.errno in _FULL else ""
        note(f"error: {printable(what + where + kept)}")
        raise typer.Exit(1) from error


def check_output(path: Path | None) -> None:
    """Raises MmrrError if no file can be written there: better before the work than after it."""
    if path is None:
        return
    if path.is_dir():
        raise MmrrError(f"--output {path} is a folder; expected a file")
    if not path.parent.is_dir():
        raise MmrrError(f"--output {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise MmrrError(f"--output {path}: {path.parent} cannot be written")


def table(
    title: str, columns: list[str], rows: list[list[str]], *, numbers_from: int = 1, to_stdout: bool = False
) -> None:
    """Print a table; the columns from ``numbers_from`` on are numbers, set to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = sys.stdout if to_stdout else sys.stderr
    # Text: names and queries are data, not markup.
    grid = Table(title=Text(printable(title)) if title else None, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < numbers_from else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    width = None if out.isatty() else 120
    Console(file=out, width=width).print(grid)


def printable(text: str) -> str:
    """On one line, with no character that a terminal would take for a command."""
    return "".join(char if unicodedata.category(char) not in ("Cc", "Cs") else " " for char in text)


def size(n_bytes: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} TB"


def pairs(values: list[str] | None, **named: object) -> dict[str, str]:
    """``["a=1"]`` and named options that were given -> ``{"a": "1"}``. Raises MmrrError for a text without ``=``."""
    options = {name: str(value) for name, value in named.items() if value is not None}
    for text in values or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise MmrrError(f"option '{text}': expected KEY=VALUE")
        options[key.strip()] = value
    return options
