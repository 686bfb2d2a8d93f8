"""``mmrr train``: a config in, a checkpoint or a LoRA adapter out. Shows the progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

from mmrr.errors import MmrrError

from . import options as o
from .terminal import emit, is_quiet, note

if TYPE_CHECKING:
    from rich.console import Console

    from mmrr.training.config import FamilyConfig, TrainingConfig

#: A step of a training as its log has it: numbers by name. Any: their names and types differ between trainings.
Record = dict[str, Any]

#: Seconds between two lines of progress when stderr is not a terminal.
_LINE_INTERVAL_S = 30.0


def train(
    task: Annotated[
        o.Task, typer.Argument(metavar="TASK", help="What to train: reader, embedder or reranker.", show_default=False)
    ],
    config: Annotated[
        Path, typer.Option("--config", help="TOML file; docs/training.md describes its keys.", show_default=False)
    ],
    run_dir: Annotated[
        Path,
        typer.Option("--run-dir", help="Folder of this training: state, log, curves and result.", show_default=False),
    ],
    steps: Annotated[
        Optional[int], typer.Option("--steps", min=1, help="Overrides the steps of the config.", show_default=False)
    ] = None,
    json_: o.Json = False,
) -> None:
    """Train a reader, embedder or reranker.

    A config with `model` and `pairs` fine-tunes a published model by LoRA. mmrr mine makes pairs. The result is
    RUN_DIR/adapter, which --scorer-model and --embedder accept.

    A config with `documents` trains a small model from random weights on pages drawn from texts: first the reader,
    then embedder and reranker. The result is RUN_DIR/checkpoint. With `scorer` it trains another scorer family.

    The same command continues a stopped training from the last saved state, with the same losses.

    Several GPUs: `accelerate launch --multi_gpu -m mmrr.cli.main train ...`
    """
    with contextlib.ExitStack() as lock:
        from mmrr.training import config as configs
        from mmrr.training.distributed import is_main_process
        from mmrr.training.loop import exclusive

        settings = configs.read(config, task, note if is_main_process() else lambda _: None)
        if steps is not None:
            settings = configs.with_steps(settings, steps)
        if is_main_process():
            lock.enter_context(exclusive(run_dir))
        configs.begin(run_dir, task, settings)
        last: Record = {}
        try:
            with _progress(task, quiet=is_quiet() or not is_main_process()) as show:
                for last in _records(task, settings, run_dir, quiet=not is_main_process()):
                    show(last)
        except KeyboardInterrupt as error:
            if is_main_process():
                note(f"stopped; {_saved(run_dir)}; run the same command again to continue")
            raise typer.Exit(130) from error
        if is_main_process():
            _report(run_dir, run_dir / settings.result, last, as_json=json_)


def _report(run_dir: Path, result: Path, last: Record, *, as_json: bool) -> None:
    curves = _draw(run_dir)
    if as_json:
        paths = {"result": str(result), "log": str(run_dir / "log.jsonl"), "curves": curves and str(curves)}
        emit({**paths, "last": last or None})
        return
    if not last:
        note(f"{run_dir} has run all its steps; --steps N adds more")
    typer.echo(result)


def _records(task: str, settings: TrainingConfig, run_dir: Path, *, quiet: bool) -> Iterator[Record]:
    """Start the training that the config describes; it yields one record per logged step."""
    from mmrr.training import families
    from mmrr.training.config import EmbedderConfig, RerankerConfig, ScratchConfig

    def tell(line: str) -> None:
        if not quiet:
            note(line)

    if isinstance(settings, RerankerConfig | EmbedderConfig):
        from mmrr.training import finetune

        if isinstance(settings, RerankerConfig):
            return finetune.train_reranker(settings, run_dir, tell)
        return finetune.train_embedder(settings, run_dir, tell)
    if not isinstance(settings, ScratchConfig):
        return families.load(cast("FamilyConfig", settings).scorer).train(settings, run_dir, tell)
    from mmrr.training.from_scratch.run import train_embedder, train_reader, train_reranker

    starts: dict[str, Any] = {"reader": train_reader, "embedder": train_embedder, "reranker": train_reranker}
    started: Iterator[Record] = starts[task](settings, run_dir)
    return started


@contextlib.contextmanager
def _progress(task: str, *, quiet: bool) -> Iterator[Callable[[Record], None]]:
    """Show records on stderr: a bar on a terminal, else one line every 30 seconds."""
    if quiet:
        yield lambda record: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(task, console) as show:
            yield show
    else:
        yield _Lines()


class _Lines:
    """Writes a line for a record if the last line is old enough, and for the last step."""

    def __init__(self) -> None:
        self._written = 0.0

    def __call__(self, record: Record) -> None:
        now = time.monotonic()
        if now - self._written > _LINE_INTERVAL_S or record["step"] == record["steps"]:
            self._written = now
            note(f"step {record['step']} of {record['steps']}  {_figures(record)}")


@contextlib.contextmanager
def _bar(task: str, console: Console) -> Iterator[Callable[[Record], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        line = bar.add_task(task, total=None, figures="loading")
        yield lambda record: bar.update(line, total=record["steps"], completed=record["step"], figures=_figures(record))


def _figures(record: Record) -> str:
    shown = {name: f"{record[name]:.4f}" for name in ("loss", "accuracy") if name in record}
    return "  ".join(f"{name} {value}" for name, value in shown.items()) + f"  lr {record['lr']:.1e}"


def _saved(run_dir: Path) -> str:
    from mmrr.training.loop import RunFolder

    step = RunFolder(run_dir).saved()
    return f"the state of step {step} is in {run_dir}" if step else f"nothing is saved in {run_dir} yet"


def _draw(run_dir: Path) -> Path | None:
    """Draw the curves. A training counts as done even if its curves cannot be drawn."""
    from mmrr.plots import draw_curves

    try:
        return draw_curves(run_dir / "log.jsonl", run_dir / "curves.png")
    except MmrrError as error:
        note(f"no curves: {error}")
        return None
