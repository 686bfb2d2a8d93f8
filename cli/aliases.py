"""Old spellings of commands and options. They keep working, stay out of the help, and print one line on stderr."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer.core

from mmrr.config import OcrMode
from mmrr.errors import MmrrError

from .terminal import detail, fail, note, plain_errors

#: Old command -> new command.
COMMANDS = {"blend": "fuse"}
#: Command -> {old option: new option}.
OPTIONS = {
    "retrieve": {"--fuse": "--channels"},
    "rerank": {"--blend": "--fuse"},
    "run": {"--blend": "--fuse"},
    "mmdocir": {"--blend": "--fuse"},
    "compare": {"--blend": "--fuse"},
    "bench": {"--queries": "--query-counts"},
    "train": {"--run": "--run-dir"},
    "mine": {"--out": "--output"},
    "draw": {"--out": "--output"},
    "probe": {"--alike": "--similarity"},
}

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two slashes in a URL, one after Path() has read it
_LARGEST = 2**31 - 1
_EMPTY = re.compile(r"(--[\w-]+=)?")
#: A wrong option, argument or command. Typer exports only its subclass.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

# ``ctx`` is Any in this file: recent versions of Typer contain a private copy of Click, so its Context has no public
# name that fits every version.


class Command(typer.core.TyperCommand):
    """A command that accepts old option names and shows errors as one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old option names before Click reads the arguments. Everything after -- is left as it is."""
        old_names = OPTIONS.get(self.name or "", {})
        end = args.index("--") if "--" in args else len(args)
        renamed = [_renamed(arg, old_names, silent=ctx.resilient_parsing) for arg in args[:end]]
        if any("--ocr" in parameter.opts for parameter in self.params):
            renamed = _with_ocr_mode(renamed, silent=ctx.resilient_parsing)
        with _misuse_in_one_line(ctx, args):
            left = super().parse_args(ctx, renamed + args[end:])
            if not ctx.resilient_parsing:
                _refuse_urls(ctx)
            return left

    def invoke(self, ctx: Any) -> Any:
        """Run the command; the user's errors become one line, and --verbose shows how long the command took."""
        started = time.perf_counter()
        with plain_errors(as_json=bool(ctx.params.get("json_"))):
            _check_numbers(ctx)
            result = super().invoke(ctx)
        detail(f"{ctx.command_path}: {time.perf_counter() - started:.2f} s")
        return result


class Group(typer.core.TyperGroup):
    """A group that accepts old command names and shows errors as one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the group's own options. Refuse an empty argument of any command: as a path it is the current folder."""
        with _misuse_in_one_line(ctx, args):
            if not ctx.resilient_parsing and any(_EMPTY.fullmatch(arg) for arg in args):
                raise typer.BadParameter("found an empty argument, expected a text or a path")
            left = super().parse_args(ctx, args)
            if not ctx.resilient_parsing:
                _refuse_urls(ctx)
            return left

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace an old command name."""
        # The root function, which sets the verbosity, runs later.
        silent = ctx.resilient_parsing or bool(ctx.params.get("quiet"))
        with _misuse_in_one_line(ctx, args):
            return super().resolve_command(ctx, [_renamed(args[0], COMMANDS, silent=silent), *args[1:]])

    def invoke(self, ctx: Any) -> Any:
        """Run the group's own function, then its command."""
        with plain_errors(as_json=bool(ctx.params.get("json_")) or "--json" in ctx.args):
            return super().invoke(ctx)


def _refuse_urls(ctx: Any) -> None:
    """Refuse a URL where a path is expected, from the command line, the environment or a file of defaults.

    Without this, ``s3://bucket/x`` is the folder ``s3:`` of the current folder.
    """
    hints = get_type_hints(inspect.unwrap(ctx.command.callback))  # Typer's own types differ between its versions
    for parameter in ctx.command.params:
        hint, value = hints.get(parameter.name), ctx.params.get(parameter.name)
        values = value if isinstance(value, list | tuple) else [value]
        urls = [str(one) for one in values if one is not None and _URL.match(str(one))]
        if urls and Path in _types(hint):
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
            url = re.sub(":/+", "://", urls[0], count=1)
            raise typer.BadParameter(f"{name} {url}: found a URL, expected a path; mmrr uses local files only")


def _types(hint: Any) -> set[Any]:  # Any: a type as typing writes it
    """The types in a type, as list and Path in ``Optional[list[Path]]``."""
    return {hint}.union(*map(_types, get_args(hint)))


def _check_numbers(ctx: Any) -> None:
    """Refuse whole numbers that no library accepts: they would end in a bug far from the option."""
    for parameter in ctx.command.params:
        value = ctx.params.get(parameter.name)
        if isinstance(value, int) and abs(value) > _LARGEST:
            shown = str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
            raise MmrrError(f"{parameter.opts[-1]}: found {shown}, expected a whole number up to {_LARGEST}")


@contextlib.contextmanager
def _misuse_in_one_line(ctx: Any, args: list[str]) -> Iterator[None]:
    """Show a usage error as one line and exit with code 2. Shell completion gets the error itself."""
    try:
        yield
    except UsageError as error:
        if ctx.resilient_parsing:
            raise
        message = str(error.format_message()).replace("Value error, ", "").rstrip(".")
        fail(f"{message}; see: {ctx.command_path} --help", error, as_json="--json" in args, code=2)


def _with_ocr_mode(args: list[str], *, silent: bool) -> list[str]:
    """``--ocr`` without a value and ``--no-ocr``, which were a switch, with the value that they mean."""
    found = []
    for place, arg in enumerate(args):
        following = args[place + 1] if place + 1 < len(args) else ""
        if arg == "--no-ocr":
            found += ["--ocr", "never"]
        elif arg == "--ocr" and not silent and _is_no_ocr_mode(following):
            found += ["--ocr", "auto"]
        else:
            found.append(arg)
            continue
        if not silent:
            note(f"{arg} is now --ocr {found[-1]}")
    return found


def _is_no_ocr_mode(following: str) -> bool:
    """Whether the argument after ``--ocr`` is another argument. Any other word is a value, right or wrong."""
    if following in get_args(OcrMode):
        return False
    return not following or following.startswith("-") or os.path.exists(following)


def _renamed(arg: str, names: dict[str, str], *, silent: bool) -> str:
    """``--old`` or ``--old=value`` with the new name. ``silent`` is for shell completion."""
    name, equals, value = arg.partition("=")
    if name not in names:
        return arg
    if not silent:
        note(f"{name} is now {names[name]}")
    return names[name] + equals + value
