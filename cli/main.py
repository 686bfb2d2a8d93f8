"""The ``mmrr`` command: builds the app from the files of this folder.

A command parses its options, calls the library, and reports the result. Nothing heavy is imported before a command
runs, so ``mmrr --help`` needs no torch.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mmrr import __version__

from . import (
    bench,
    compare,
    defaults,
    distill,
    evaluate,
    everyday,
    explain,
    html_report,
    mcp,
    merge,
    probe,
    serve,
    stage_commands,
    train,
    training_data,
    tune,
    workspace,
)
from .aliases import Command, Group
from .terminal import (
    Verbosity,
    close_stdout,
    is_verbose,
    keep_freed_memory,
    replace_unencodable,
    set_verbosity,
    show_bug,
)

#: Panel of the help -> command -> its function, in the order of the help. None: one of GROUPS.
PANELS: dict[str, dict[str, Callable[..., None] | None]] = {
    "Everyday": {
        "index": everyday.index,
        "precache": everyday.precache,
        "rerank": everyday.rerank,
        "eval": None,
        "run": everyday.run,
    },
    "Stages": {
        "render": stage_commands.render,
        "retrieve": stage_commands.retrieve,
        "prune": stage_commands.prune,
        "fuse": stage_commands.fuse,
    },
    "Evaluate": {
        "compare": compare.compare,
        "report": html_report.report,
        "tune": tune.tune,
        "bench": bench.bench,
        "probe": probe.probe,
    },
    "Workspace": {
        "ls": workspace.list_artifacts,
        "rm": workspace.remove,
        "view": workspace.view,
        "explain": explain.explain,
        "verify": workspace.verify,
        "models": workspace.models,
        "config": workspace.config,
        "doctor": workspace.doctor,
    },
    "Serve": {"serve": serve.serve, "mcp": mcp.mcp},
    "Train": {
        "train": train.train,
        "merge": merge.merge,
        "mine": training_data.mine,
        "distill": distill.distill,
        "draw": training_data.draw,
    },
}
#: Command -> the Typer app of its commands.
GROUPS = {"eval": evaluate.app}


class _Root(Group):
    """The root group, which lists commands in the order of PANELS."""

    def list_commands(self, ctx: Any) -> list[str]:  # Any: see aliases.py
        names = [name for commands in PANELS.values() for name in commands]
        return sorted(super().list_commands(ctx), key=names.index)


def _print_versions(wanted: bool) -> None:
    """Print the versions of mmrr and of what its results depend on. Imports none of them."""
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    typer.echo(f"mmrr {__version__}")
    typer.echo(f"Python {platform.python_version()}")
    for package in ("torch", "transformers"):
        try:
            typer.echo(f"{package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package} is not installed")
    raise typer.Exit


def root(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show timings and, after a bug, its traceback.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress and no notes. Errors remain.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the versions of mmrr, Python, torch and transformers.",
            callback=_print_versions,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Find the right page in thousands of PDF pages by looking at the pages.

    Everyday use: `mmrr index`, `mmrr precache`, `mmrr rerank`, `mmrr eval`. Each command writes its result into the
    workspace (`--work`), prints its path as the last line of stdout, and never computes the same result twice.

    Example: `mmrr index reports/`, then `mmrr precache --scorer-model reader-reranker`, then `mmrr rerank "a question"`
    """
    set_verbosity(Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL)
    found = defaults.read()
    context.obj = found
    commands = getattr(context.command, "commands", {})
    context.default_map = defaults.default_map(commands, found.values)


def _add_commands(to: typer.Typer, only: str | None = None) -> typer.Typer:
    """Add the root command and the commands of PANELS, or one of them only."""
    for panel, commands in PANELS.items():
        for name, function in commands.items():
            if only not in (None, name):
                continue
            if function:
                to.command(name, cls=Command, rich_help_panel=panel)(function)
            else:
                to.add_typer(GROUPS[name], name=name, rich_help_panel=panel)
    to.callback()(root)
    return to


def _new_app() -> typer.Typer:
    return typer.Typer(
        name="mmrr",
        cls=_Root,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _add_commands(_new_app())


def _named(arguments: list[str]) -> str | None:
    """The command that these arguments name; None: none, or no known one."""
    name = next((one for one in arguments if not one.startswith("-")), None)
    return name if any(name in commands for commands in PANELS.values()) else None


def main() -> None:
    """Entry point of the console script."""
    keep_freed_memory()
    replace_unencodable()
    named = _named(sys.argv[1:])
    try:
        # Typer takes 0.1 s to describe all commands. Without a known one, its help and its errors need all of them.
        (_add_commands(_new_app(), named) if named else app)()
    except Exception as error:
        if is_verbose():
            raise
        show_bug(error, as_json="--json" in sys.argv)
        sys.exit(1)
    finally:
        close_stdout()


if __name__ == "__main__":
    main()
