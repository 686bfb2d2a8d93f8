"""``mmrr compare``: several rerankers on the same pages and candidates, in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mmrr.config import Machine, Rerank
from mmrr.errors import MmrrError

from . import options as o
from . import report
from .session import open_context, scorings, search_options
from .show import check_output, emit, note, size, table

if TYPE_CHECKING:
    from mmrr.experiments import Compared


def compare(
    scorers: Annotated[
        str,
        typer.Option(
            metavar="NAME[=MODEL][+KEY=VALUE]...,...",
            help="Scorer families, each with a checkpoint (by default the one that comes with mmrr) and cache options.",
        ),
    ] = "minireranker",
    work: o.Work = o.WORK,
    queries: Annotated[Optional[Path], typer.Option(help="JSON Lines: query_id, text, doc_id.")] = None,
    qrels: Annotated[Optional[Path], typer.Option(help="TREC judgements: query_id 0 page_id relevance.")] = None,
    data: Annotated[
        Optional[str],
        typer.Option(help="MMDocIR's folder or Hub id instead, in a workspace that mmrr eval mmdocir has indexed."),
    ] = None,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    candidates: o.Candidates = o.RETRIEVE.depth,
    blend: o.Blend = None,
    output: Annotated[Optional[Path], typer.Option(help="Draw nDCG@5 over bytes a page here, as PNG.")] = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
) -> None:
    """Rerank the same candidates with several scorers and show quality, size and speed side by side.

    Page caches that are missing are made; the first stage is the row to beat.
    One family may stand there several times:
    --scorers minireranker,minireranker+codec=int8,kalm=PATH+ratio=8
    """
    with open_context(work, Machine(device, dtype)) as session:
        from mmrr import experiments
        from mmrr.evaluation import mmdocir
        from mmrr.evaluation.trec import read_qrels, read_queries

        check_output(output)
        chosen = scorings(scorers)
        if data is not None:
            if queries or qrels:
                raise MmrrError("--data brings its own questions: leave out --queries and --qrels")
            benchmark = mmdocir.open_benchmark(data)
            asked, judged, scope = benchmark.queries(), benchmark.qrels(), "document"
        elif queries and qrels:
            asked, judged = read_queries(queries), read_qrels(qrels)
        else:
            raise MmrrError("compare on what? pass --queries and --qrels, or --data with MMDocIR")
        options = search_options(first_stage, scope, candidates)
        found = experiments.compare(session, asked, judged, options, chosen, Rerank(fuse=blend), report.plan)
        if output:
            _draw(found, output)
        if json_:
            emit({"queries": len(judged), "rows": [dataclasses.asdict(row) for row in found]})
            return
        _show(found)


def _show(found: list[Compared]) -> None:
    measures = list(found[0].metrics)
    rows = [
        [
            row.name,
            *(f"{row.metrics[measure]:.3f}" for measure in measures),
            size(row.page_bytes) if row.page_bytes else "",
            f"{row.pages_per_second:.2f}" if row.pages_per_second else "",
            f"{row.query_ms:,.0f}" if row.query_ms is not None else "",
        ]
        for row in found
    ]
    table("", ["", *measures, "a page", "pages/s", "ms a query"], rows, to_stdout=True)
    note("pages/s: when the caches were made; ms a query: the median, from the caches (reads may be shared)")


def _draw(found: list[Compared], picture: Path) -> None:
    """Quality over bytes a page; the first stage, which kept no caches, as a line."""
    from mmrr.plots import new_figure

    figure = new_figure(figsize=(7.0, 4.5), layout="constrained")
    panel = figure.add_subplot(1, 1, 1)
    first, *others = found
    panel.axhline(first.metrics["nDCG@5"], color="grey", linestyle="--", label=first.name)
    for row in others:
        panel.scatter(row.page_bytes, row.metrics["nDCG@5"], label=row.name)
    panel.set_xscale("log")
    panel.set_xlabel("bytes a page")
    panel.set_ylabel("nDCG@5")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
