"""What the user sees: notes, tables, JSON, one-line errors. Also the process's memory policy."""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import enum
import errno
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

import typer

from mmrr.errors import MmrrError

#: The version of every --json document. It increases when a field is renamed, removed or changes its meaning.
SCHEMA = 1

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: The user can fix these: they are one line. Any other OSError is a bug.
_FIXABLE = (*_DISK_FULL, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
_RESUME = "finished work is kept; run the same command again to continue"
#: The numbers glibc gives these parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


class Verbosity(enum.IntEnum):
    """How much goes to stderr: QUIET errors only; NORMAL notes and progress; VERBOSE timings and tracebacks too."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


_VERBOSITY: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity.NORMAL)


def set_verbosity(verbosity: Verbosity) -> None:
    """Set how much the following commands of this process write to stderr."""
    _VERBOSITY.set(verbosity)


def is_quiet() -> bool:
    """Whether only errors are shown."""
    return _VERBOSITY.get() is Verbosity.QUIET


def is_verbose() -> bool:
    """Whether timings and tracebacks are shown."""
    return _VERBOSITY.get() is Verbosity.VERBOSE


def note(message: str) -> None:
    """Write a message for people to stderr, unless --quiet."""
    if not is_quiet():
        typer.echo(message, err=True)


def detail(message: str) -> None:
    """Write a message to stderr with --verbose only."""
    if is_verbose():
        typer.echo(message, err=True)


def emit(document: Mapping[str, object]) -> None:
    """Write the one JSON document of a command to stdout, with the schema number first."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    ascii_only = not encoding.lower().startswith("utf")  # escapes lose nothing where a character cannot be encoded
    typer.echo(json.dumps({"schema": SCHEMA, **document}, ensure_ascii=ascii_only, indent=1))


def replace_unencodable() -> None:
    """Write a question mark for each character that stdout or stderr cannot encode.

    The bytes of a file name that is not text are written as they are.
    """

    def replaced(error: UnicodeError) -> tuple[bytes, int]:
        assert isinstance(error, UnicodeEncodeError)
        chars = error.object[error.start : error.end]
        written = (bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else b"?" for char in chars)
        return b"".join(written), error.end

    codecs.register_error("mmrr", replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mmrr")


@contextlib.contextmanager
def plain_errors(*, as_json: bool = False) -> Iterator[None]:
    """Show an error that the user can fix as one line on stderr and exit with code 1; Ctrl-C exits with 130.

    With ``as_json`` the error is a JSON object on stdout too. Other exceptions are bugs and pass through.
    """
    try:
        yield
    except MmrrError as error:
        fail(str(error), error, as_json=as_json)
    except KeyboardInterrupt as error:
        note(f"stopped; {_RESUME}")
        raise typer.Exit(130) from error
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        full = error.errno in _DISK_FULL
        where = f" at {error.filename}" if error.filename else ""  # without a name it is stdout, or a library's file
        text = f"{'the disk is full' if full else error.strerror}{where}{f'; {_RESUME}' if full else ''}"
        fail(text, error, as_json=as_json)


def fail(message: str, cause: BaseException, *, as_json: bool, code: int = 1) -> None:
    """Show one error and exit with ``code``."""
    typer.echo(f"error: {printable(message)}", err=True)
    if as_json:
        with contextlib.suppress(OSError):  # what cannot be written may be stdout itself
            emit({"error": message.encode("utf-8", "replace").decode("utf-8")})  # no JSON text has a lone surrogate
    raise typer.Exit(code) from cause


def close_stdout() -> None:
    """Drop what stdout does not take: Python would print a traceback when it tries again at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_bug(error: BaseException, *, as_json: bool = False) -> None:
    """Name an unexpected exception in one line, with the place in mmrr and the way to its traceback."""
    place, step = "", error.__traceback__
    while step:
        place = f" ({step.tb_frame.f_code.co_filename}, line {step.tb_lineno})"
        step = step.tb_next
    text = printable(f"{type(error).__name__}: {error}{place}")
    message = f"a bug in mmrr: {text}; run `mmrr -v ...` for the traceback and report it"
    typer.echo(f"error: {message}", err=True)
    if as_json:
        emit({"error": message})


def check_output(path: Path | None, *, is_picture: bool = False, option: str = "--output") -> None:
    """Check, before the work starts, that a file can be written. Raises MmrrError if not."""
    if path is None:
        return
    if is_picture and path.suffix.lower() != ".png":
        raise MmrrError(f"{option} {path}: expected a name that ends in .png")
    if path.is_dir():
        raise MmrrError(f"{option} {path} is a folder; expected a file")
    if not path.parent.is_dir():
        raise MmrrError(f"{option} {path}: the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise MmrrError(f"{option} {path}: no permission to write in {path.parent}; choose another folder")


def table(
    title: str, columns: list[str], rows: list[list[str]], *, numbers_from: int = 1, to_stdout: bool = False
) -> None:
    """Print a table. The columns from index ``numbers_from`` on hold numbers and are aligned to the right."""
    if is_quiet() and not to_stdout:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = sys.stdout if to_stdout else sys.stderr
    # Text, because names and queries are data: rich would read brackets in a plain str as markup.
    grid = Table(title=Text(printable(title)) if title else None, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < numbers_from else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    width = None if out.isatty() else 120
    Console(file=out, width=width).print(grid)


def printable(text: str) -> str:
    """The text on one line, with every control character replaced: a terminal would execute it."""
    return "".join(char if unicodedata.category(char) not in ("Cc", "Cs") else " " for char in text)


def counted(n: int, noun: str, plural: str = "") -> str:
    """A count with its noun: ``1 page``, ``2 pages``. ``plural`` is needed where it is not the noun and an s."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"


def size(n_bytes: float) -> str:
    """Bytes for people, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} TB"


def keep_freed_memory() -> None:
    """Stop glibc from returning freed memory to the system. Does nothing with another C library.

    By default glibc returns large blocks immediately, and the system gives the next ones page by page and filled with
    zeros. That takes 3 to 27 % of the time of a large model's layers (BENCHMARKS.md). With this, at most 2 GiB of free
    memory stay with the process. The command line decides this and not the library, because it is a policy of the
    whole process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows, CDLL(None) is not allowed
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
