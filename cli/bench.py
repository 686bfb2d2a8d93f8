"""``mmrr bench``: how fast this machine reranks, against dense forwards and against its own limits."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.config import Machine
from mmrr.errors import MmrrError

from . import options as o
from .session import scorings
from .show import check_output, emit, note, plain_errors, progress, size, table

if TYPE_CHECKING:
    from mmrr.evaluation.latency import Bench, Other
    from mmrr.pipeline import Scoring


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="A shape with random weights (reader, qwen3-vl-2b, qwen3-vl-4b, qwen3-vl-8b), or any checkpoint."
        ),
    ] = "reader",
    candidates: Annotated[str, typer.Option(help="Numbers of candidates, with commas.")] = "10,20,50,100",
    queries: Annotated[str, typer.Option(help="Numbers of queries that share the most candidates.")] = "8,64",
    tokens: Annotated[
        str,
        typer.Option(
            help="Visual tokens of a page, at most. Of several, with commas, the largest is timed in every way, the "
            "others for how times grow."
        ),
    ] = "320,640,1280",
    keep: Annotated[float, typer.Option(help="Share of them that is kept.")] = 0.5,
    band: o.Band = None,
    codec: Annotated[Optional[list[str]], typer.Option(help="Codecs to time; repeatable. Default: all.")] = None,
    scorers: Annotated[
        str,
        typer.Option(
            metavar="NAME[=MODEL][+KEY=VALUE]...,...",
            help="Other scorers to time on the same pages, as mmrr compare takes them. Those that read text get 400 "
            "words a page.",
        ),
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each line; the median counts.")] = 3,
    dense_pages: Annotated[int, typer.Option(min=1, help="Dense forwards to time; the rest is in proportion.")] = 2,
    folder: Annotated[
        Optional[Path], typer.Option(help="Where caches are written, to be read from. Default: a temporary folder.")
    ] = None,
    output: Annotated[Optional[Path], typer.Option(help="Draw latency over candidates here, as PNG.")] = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
) -> None:
    """Time one query: dense, with ordinary prefix caching, and from page caches.

    And what reading a page once costs beside a dense forward. Everything
    on the same random pages in one process. A shape needs no download: its
    weights are random and of the true sizes, but for the vocabulary, which
    no score depends on.
    """
    with plain_errors(), tempfile.TemporaryDirectory(prefix="mmrr-bench-", dir=folder) as scratch:
        from mmrr.evaluation.latency import Plan
        from mmrr.evaluation.latency import bench as run

        check_output(output)
        plan = Plan(
            candidates=_numbers("--candidates", candidates),
            queries=_numbers("--queries", queries),
            keep=keep,
            repeats=repeats,
            dense_pages=dense_pages,
        )
        if model.startswith("qwen3-vl-"):
            # Random weights come with a tokenizer of bytes: so many of them as the published one makes tokens.
            plan = dataclasses.replace(plan, query=plan.query[:20])
        if codec:
            from mmrr.modeling import kv_codec

            for name in codec:
                kv_codec.check(name)
            plan = dataclasses.replace(plan, codecs=tuple(codec))
        sizes = _numbers("--tokens", tokens, 4)
        machine = Machine(device, dtype)
        others = _others(scorings(scorers), machine, Path(scratch)) if scorers else []
        scorer = _scorer(model, band, machine, Path(scratch))
        *smaller, page = (_page(n, scorer.backbone.cell_px) for n in sizes)
        plan = dataclasses.replace(plan, image_size=page, smaller=tuple(smaller))
        found = run(scorer, plan, Path(scratch) / "work", others, progress)
        if output:
            _draw(found, output)
        if json_:
            emit({"model": model, **dataclasses.asdict(found)})
            return
        _show(found)


def _page(tokens: int, side: int) -> tuple[int, int]:
    """Width and height in pixels of a page of so many visual tokens at most."""
    rows = round((tokens * 1.29) ** 0.5)  # a letter page is 1.29 times as high as wide
    return max(1, tokens // rows) * side, rows * side


def _numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < least:
        raise MmrrError(f"{option} {text}: expected numbers from {least}, with commas, such as 10,100")
    return counts


def _scorer(model: str, band: str | None, machine: Machine, scratch: Path) -> Any:
    from mmrr import random_checkpoint
    from mmrr.modeling.checkpoints import resolve
    from mmrr.modeling.devices import resolve_device, resolve_dtype
    from mmrr.scorers import minireranker
    from mmrr.workspace.files import HashCache

    device = resolve_device(machine.device)
    dtype = resolve_dtype(machine.dtype, device)
    if model in random_checkpoint.SHAPES:
        note(f"writing {model} with random weights")
        shape = random_checkpoint.SHAPES[model]
        random_checkpoint.save(
            random_checkpoint.new_model(shape, dtype=dtype), scratch / "model", shape.max_tokens, dtype
        )
        model = str(scratch / "model")
    checkpoint = resolve(model, None, HashCache(scratch / "hashes.json"))
    options = minireranker.Prepare(band=band) if band else minireranker.Prepare()
    prepare = minireranker.resolve(options, checkpoint.config())
    return minireranker.Scorer(checkpoint, prepare, device, dtype)


def _others(chosen: dict[str, Scoring], machine: Machine, scratch: Path) -> list[Other]:
    from mmrr.evaluation.latency import Other
    from mmrr.modeling.devices import resolve_device, resolve_dtype
    from mmrr.stages.precache import family_of
    from mmrr.workspace.files import HashCache

    device = resolve_device(machine.device)
    dtype = resolve_dtype(machine.dtype, device)
    hashes = HashCache(scratch / "hashes.json")
    found = []
    for label, one in chosen.items():
        family = family_of(hashes, one.family, one.model, one.options)
        scorer = family.module.Scorer(family.checkpoint, family.prepare, device, dtype)
        found.append(Other(label, family.module, scorer))
    return found


def _show(found: Bench) -> None:
    base = next(row for row in found.rows if row.what == "dense, one by one")
    lines = []
    for row in found.rows:
        dense = base.ms * row.candidates / base.candidates
        seconds = row.ms / 1000
        read = row.page_bytes * row.candidates
        lines.append(
            [
                row.what + ("" if row.timed == row.candidates else f" ({row.timed} timed)"),
                str(row.candidates),
                f"{row.ms:,.1f}",
                f"{row.ms / dense:.2%}",
                size(row.page_bytes) if row.page_bytes else "",
                f"{row.flops / seconds / row.limit_flops:.0%}" if row.flops else "",
                f"{read / seconds / found.limit.bytes:.0%}" if read else "",
                size(row.peak_bytes) if row.peak_bytes else "",
            ]
        )
    once = [
        [
            row.what,
            f"{row.ms:,.1f}",
            f"{row.ms / base.ms * base.candidates:.1%}",
            f"{row.flops / row.ms * 1000 / row.limit_flops:.0%}",
        ]
        for row in found.once
    ]
    table("Reading a page once", ["", "ms a page", "of dense", "of FLOP/s"], once, to_stdout=True)
    if len(found.growth) > 1:
        grown = [
            [
                str(row.tokens),
                str(row.kept),
                size(row.page_bytes),
                f"{row.dense_ms:,.1f}",
                f"{row.mini_ms:,.1f}",
                f"{row.mini_ms / row.dense_ms:.2%}",
            ]
            for row in found.growth
        ]
        columns = ["tokens a page", "kept", "a page", "dense, ms a query", "mini, resident", "of dense"]
        table(f"{base.candidates} candidates, pages of other sizes", columns, grown, to_stdout=True)
    columns = ["", "candidates", "ms a query", "of dense", "a page", "of FLOP/s", "of copy", "peak memory"]
    table(
        f"{found.tokens} tokens a page, {found.kept} kept, {found.query_tokens} of the query's segment; this machine: "
        f"{found.limit.flops / 1e9:,.0f} GFLOP/s, {found.limit.bytes / 1e9:,.1f} GB/s copied",
        columns,
        lines,
        to_stdout=True,
    )


def _draw(found: Bench, picture: Path) -> None:
    """Latency over candidates, both logarithmic; a line a way of scoring, a point where there is one number alone."""
    from mmrr.plots import new_figure

    figure = new_figure(figsize=(8.0, 5.0), layout="constrained")
    panel = figure.add_subplot(1, 1, 1)
    for what in dict.fromkeys(row.what for row in found.rows if row.queries == 1):
        points = [(row.candidates, row.ms) for row in found.rows if row.what == what]
        panel.plot(*zip(*points, strict=True), marker="o", label=what)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("candidates")
    panel.set_ylabel("ms a query")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
