"""``mmrr bench``: the speed of reranking on this machine, next to dense forwards and to the machine's limits."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mmrr.config import Machine
from mmrr.errors import MmrrError

from . import options as o
from .context import scorings
from .progress import progress
from .terminal import check_output, emit, note, size, table

if TYPE_CHECKING:
    from mmrr.evaluation._timing import Row
    from mmrr.evaluation.latency import Bench, Other, Plan
    from mmrr.pipeline import Scoring
    from mmrr.scorers.minireranker import Scorer


Architecture = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An architecture with random weights (reader, qwen3-vl-2b, qwen3-vl-4b, qwen3-vl-8b, or tiny to try the "
        "command), or any checkpoint.",
    ),
]
CandidateCounts = Annotated[str, typer.Option("--candidates", help="Numbers of candidates, separated by commas.")]
QueryCounts = Annotated[
    str,
    typer.Option("--query-counts", help="Numbers of queries that share the most candidates, separated by commas."),
]
TokenCounts = Annotated[
    str,
    typer.Option(
        "--tokens",
        help="Most visual tokens of a page, separated by commas. The largest is timed in every way; the others show "
        "how times grow.",
    ),
]
# A list of str, because Typer does not accept a list of Literal.
Codecs = Annotated[
    Optional[list[str]], typer.Option("--codec", help="Codec to time. Repeatable. Default: all.", show_default=False)
]
Others = Annotated[
    str,
    typer.Option(
        "--scorers",
        metavar="NAME[=MODEL][+KEY=VALUE]...,...",
        help="Other scorers to time on the same pages, written as for mmrr compare. A scorer that reads text gets 400 "
        "words per page.",
    ),
]


# One parameter per option.
def bench(
    model: Architecture = "reader",
    candidate_counts: CandidateCounts = "10,20,50,100",
    query_counts: QueryCounts = "8,64",
    tokens: TokenCounts = "320,640,1280",
    keep: Annotated[float, typer.Option("--keep", help="Share of a page's visual tokens to keep.")] = 0.5,
    band: o.Band = None,
    codec: Codecs = None,
    scorers: Others = "",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs per row; the median counts.")] = 3,
    dense_pages: Annotated[
        int, typer.Option("--dense-pages", min=1, help="Dense forwards to time; more are extrapolated.")
    ] = 2,
    folder: Annotated[
        Optional[Path], typer.Option("--folder", help="Folder for the caches. Default: a temporary folder.")
    ] = None,
    output: Annotated[
        Optional[Path], typer.Option("--output", help="Draw latency over candidates to this PNG file.")
    ] = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Time reranking on this machine.

    Times one query in three ways: dense, with prefix caching, and from page caches. All use the same random pages in
    one process. An architecture needs no download: its random weights have the true sizes except for the vocabulary,
    which no score depends on.
    """
    check_output(output, is_picture=True)
    if folder and not folder.is_dir():
        raise MmrrError(f"--folder {folder}: found no such folder; create it first")
    counts = (_numbers("--candidates", candidate_counts), _numbers("--query-counts", query_counts))
    sizes = _numbers("--tokens", tokens, 4)
    with tempfile.TemporaryDirectory(prefix="mmrr-bench-", dir=folder) as name:
        scratch, machine = Path(name), Machine(device, dtype)
        plan = _plan(counts, keep, repeats, dense_pages, codec)
        if model == "tiny" or model.startswith("qwen3-vl-"):
            # Random weights come with a tokenizer of bytes. 20 bytes are as many tokens as the published one makes.
            plan = dataclasses.replace(plan, query=plan.query[:20])
        found = _time(model, band, sizes, plan, _Place(scratch, machine, scorings(scorers) if scorers else {}))
    if output:
        _draw(found, output)
    if json_:
        emit({"model": model, **dataclasses.asdict(found)})
    else:
        _show(found)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a benchmark runs, and the other scorers it times."""

    scratch: Path
    machine: Machine
    others: dict[str, Scoring]


def _numbers(option: str, text: str, least: int = 1) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = ()
    if not counts or counts[0] < least or counts[-1] >= 2**31:
        raise MmrrError(f"{option} {text[:40]}: expected numbers from {least}, separated by commas, such as 10,100")
    return counts


def _plan(
    counts: tuple[tuple[int, ...], tuple[int, ...]],
    keep: float,
    repeats: int,
    dense_pages: int,
    codecs: Sequence[str] | None,
) -> Plan:
    from mmrr.evaluation.latency import Plan
    from mmrr.modeling import kv_codec

    candidates, queries = counts
    for codec in codecs or ():
        kv_codec.check(codec)
    plan = Plan(candidates=candidates, queries=queries, keep=keep, repeats=repeats, dense_pages=dense_pages)
    return dataclasses.replace(plan, codecs=tuple(codecs)) if codecs else plan


def _time(model: str, band: str | None, sizes: tuple[int, ...], plan: Plan, place: _Place) -> Bench:
    from mmrr.evaluation import latency

    others = _others(place)
    scorer = _scorer(model, band, place)
    *smaller, page = (_page(n, scorer.backbone.cell_px) for n in sizes)
    plan = dataclasses.replace(plan, image_size=page, smaller=tuple(smaller))
    return latency.bench(scorer, plan, place.scratch / "work", others, progress)


def _page(tokens: int, side: int) -> tuple[int, int]:
    """Width and height in pixels of a page of at most ``tokens`` visual tokens, each ``side`` pixels wide."""
    rows = round((tokens * 1.29) ** 0.5)  # a letter page is 1.29 times as high as wide
    return max(1, tokens // rows) * side, rows * side


def _scorer(model: str, band: str | None, place: _Place) -> Scorer:
    from mmrr import random_checkpoint
    from mmrr.modeling.checkpoints import resolve
    from mmrr.modeling.devices import resolve_device, resolve_dtype
    from mmrr.scorers import minireranker
    from mmrr.workspace.files import HashCache

    device = resolve_device(place.machine.device)
    dtype = resolve_dtype(place.machine.dtype, device)
    options = minireranker.Prepare(band=band) if band else minireranker.Prepare()
    if model in random_checkpoint.SHAPES:
        note(f"{model}: making random weights on {device}")
        # Nothing is written but the small files: the weights of 8B are 16 GB.
        checkpoint, weights = random_checkpoint.in_memory(model, place.scratch / "model", device, dtype)
        prepare = minireranker.resolve(options, weights.config.to_dict())
        return minireranker.Scorer(checkpoint, prepare, device, dtype, weights)
    checkpoint = resolve(model, None, HashCache(place.scratch / "hashes.json"))
    prepare = minireranker.resolve(options, checkpoint.config())
    return minireranker.Scorer(checkpoint, prepare, device, dtype)


def _others(place: _Place) -> list[Other]:
    from mmrr.evaluation.latency import Other
    from mmrr.modeling.devices import resolve_device, resolve_dtype
    from mmrr.stages.precache import family_of
    from mmrr.workspace.files import HashCache

    device = resolve_device(place.machine.device)
    dtype = resolve_dtype(place.machine.dtype, device)
    hashes = HashCache(place.scratch / "hashes.json")
    found = []
    for label, one in place.others.items():
        family = family_of(hashes, one.family, one.model, one.options)
        scorer = family.module.load(family.checkpoint, family.prepare, device, dtype)
        found.append(Other(label, family.module, family.prepare, scorer))
    return found


def _show(found: Bench) -> None:
    base = next(row for row in found.rows if row.what == "dense, one by one")
    _show_once(found, base)
    if len(found.growth) > 1:
        _show_growth(found, base)
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
    columns = ["", "candidates", "ms per query", "of dense", "per page", "of FLOP/s", "of copy", "peak memory"]
    title = (
        f"{found.tokens} tokens per page, {found.kept} kept, {found.query_tokens} tokens of the query; this machine: "
        f"{found.limit.flops / 1e9:,.0f} GFLOP/s, {found.limit.bytes / 1e9:,.1f} GB/s copied"
    )
    table(title, columns, lines, to_stdout=True)


def _show_once(found: Bench, base: Row) -> None:
    """The cost of reading a page once, next to a dense forward."""
    lines = [
        [
            row.what,
            f"{row.ms:,.1f}",
            f"{row.ms / base.ms * base.candidates:.1%}",
            f"{row.flops / row.ms * 1000 / row.limit_flops:.0%}",
        ]
        for row in found.once
    ]
    table("Reading a page once", ["", "ms per page", "of dense", "of FLOP/s"], lines, to_stdout=True)


def _show_growth(found: Bench, base: Row) -> None:
    """The times of pages of other sizes."""
    lines = [
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
    columns = ["tokens per page", "kept", "per page", "dense, ms per query", "mini, resident", "of dense"]
    table(f"{base.candidates} candidates, pages of other sizes", columns, lines, to_stdout=True)


def _draw(found: Bench, picture: Path) -> None:
    """Latency over candidates on two logarithmic axes: one line per way of scoring."""
    from mmrr.plots import new_figure

    figure = new_figure(figsize=(8.0, 5.0), layout="constrained")
    panel = figure.add_subplot(1, 1, 1)
    for what in dict.fromkeys(row.what for row in found.rows if row.queries == 1):
        points = [(row.candidates, row.ms) for row in found.rows if row.what == what]
        panel.plot(*zip(*points, strict=True), marker="o", label=what)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("candidates")
    panel.set_ylabel("ms per query")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
