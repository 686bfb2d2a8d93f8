"""``mmrr train``: a config in, a checkpoint or a LoRA adapter out; shows how it goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.errors import MmrrError

from . import options as o
from .show import emit, note, plain_errors

if TYPE_CHECKING:
    from mmrr.training.config import TrainingConfig

#: Seconds between two lines where there is no terminal to draw on.
_PAUSE = 30.0


def train(
    task: Annotated[str, typer.Argument(help="reader, embedder or reranker.", show_default=False)],
    config: Annotated[Path, typer.Option(help="TOML, see docs/training.md.", show_default=False)],
    run: Annotated[Path, typer.Option(help="Folder of this run: state, log, curves, result.", show_default=False)],
    steps: Annotated[
        Optional[int], typer.Option(min=1, help="Steps, instead of the config's.", show_default=False)
    ] = None,
    json_: o.Json = False,
) -> None:
    """Fine-tune a published Qwen3-VL on your pairs, or train a small one.

    A config with `model` and `pairs` fine-tunes by LoRA. mmrr mine makes pairs;
    --scorer-model and --embedder take the result, RUN/adapter.

    A config with `documents` trains a small model from nothing, on pages drawn
    from texts: first the reader, then embedder and reranker, in RUN/checkpoint.
    With `scorer` it trains a reranker of another family.

    Stopped at any moment, the same command goes on from the last saved state,
    with the losses it would have had.

    Several GPUs: accelerate launch --multi_gpu -m mmrr.cli.main train ...
    """
    with plain_errors(), contextlib.ExitStack() as held:
        from mmrr.training import config as configs
        from mmrr.training.distributed import is_main_process
        from mmrr.training.loop import exclusive

        if task not in configs.TASKS:
            raise MmrrError(f"mmrr train {task}: expected {', '.join(configs.TASKS)}")
        settings = configs.read(config, task, note if is_main_process() else lambda _: None)
        if steps is not None:
            settings = configs.with_steps(settings, steps)
        if is_main_process():
            held.enter_context(exclusive(run))
        configs.begin(run, task, settings)
        last: dict[str, Any] = {}
        try:
            with _shown(task, quiet=not is_main_process()) as show:
                for last in _records(task, settings, run, quiet=not is_main_process()):
                    show(last)
        except KeyboardInterrupt as error:
            if is_main_process():
                note(f"stopped; {_kept(run)}: the same command goes on from there")
            raise typer.Exit(130) from error
        if not is_main_process():
            return
        made = run / settings.result
        curves = _draw(run)
        if json_:
            result = {"result": str(made), "log": str(run / "log.jsonl"), "curves": curves and str(curves)}
            emit({**result, "last": last or None})
            return
        if not last:
            note(f"{run} has had all its steps; --steps N prolongs it")
        typer.echo(made)


def _records(task: str, settings: TrainingConfig, run: Path, *, quiet: bool) -> Iterator[dict[str, Any]]:
    from mmrr.training import families
    from mmrr.training.config import EmbedderConfig, RerankerConfig, ScratchConfig

    def tell(line: str) -> None:
        if not quiet:
            note(line)

    if isinstance(settings, RerankerConfig | EmbedderConfig):
        from mmrr.training import finetune

        if isinstance(settings, RerankerConfig):
            return finetune.train_reranker(settings, run, tell)
        return finetune.train_embedder(settings, run, tell)
    if not isinstance(settings, ScratchConfig):
        return families.load(settings.scorer).train(settings, run, tell)  # type: ignore[attr-defined]
    from mmrr.training.from_scratch.run import train_embedder, train_reader, train_reranker

    starts: dict[str, Any] = {"reader": train_reader, "embedder": train_embedder, "reranker": train_reranker}
    started: Iterator[dict[str, Any]] = starts[task](settings, run)
    return started


@contextlib.contextmanager
def _shown(task: str, *, quiet: bool) -> Iterator[Any]:
    """A line on stderr that follows the records; on no terminal, a line now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if quiet:
        yield lambda record: None
        return
    if not console.is_terminal:
        told = 0.0

        def tell(record: dict[str, Any]) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told > _PAUSE or record["step"] == record["steps"]:
                told = now
                note(f"step {record['step']} of {record['steps']}  {_figures(record)}")

        yield tell
        return
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

        def draw(record: dict[str, Any]) -> None:
            bar.update(line, total=record["steps"], completed=record["step"], figures=_figures(record))

        yield draw


def _figures(record: dict[str, Any]) -> str:
    shown = {name: f"{record[name]:.4f}" for name in ("loss", "accuracy") if name in record}
    return "  ".join(f"{name} {value}" for name, value in shown.items()) + f"  lr {record['lr']:.1e}"


def _kept(run: Path) -> str:
    from mmrr.training.loop import RunFolder

    step = RunFolder(run).saved()
    return f"the state of step {step} is in {run}" if step else f"nothing was saved in {run} yet"


def _draw(run: Path) -> Path | None:
    """The curves. A picture that cannot be drawn is no reason to lose a run."""
    from mmrr.plots import draw_curves

    try:
        return draw_curves(run / "log.jsonl", run / "curves.png")
    except MmrrError as error:
        note(f"no curves: {error}")
        return None
