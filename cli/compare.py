"""``mmrr compare``: several rerankers on the same pages and candidates, in one table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mmrr.config import Machine, Rerank, Retrieve
from mmrr.errors import MmrrError

from . import html_report, report, report_comparison
from . import options as o
from .context import fusion_of, open_context, scorings
from .terminal import check_output, counted, emit, note, size, table

if TYPE_CHECKING:
    from mmrr.experiments import Compared
    from mmrr.types import Qrels, Query


# One parameter per option.
def compare(
    scorers: Annotated[
        str,
        typer.Option(
            "--scorers",
            metavar="NAME[=MODEL][+KEY=VALUE]...,...",
            help="Scorer families, each with a checkpoint (default: the model that mmrr includes) and cache options.",
        ),
    ] = o.SCORER,
    work: o.Work = o.WORK,
    queries: o.Queries = None,
    qrels: o.Qrels = None,
    data: Annotated[
        Optional[str],
        typer.Option(
            "--data",
            help="Folder or Hub id of MMDocIR, in place of --queries and --qrels. Needs a workspace that mmrr eval "
            "mmdocir has indexed.",
        ),
    ] = None,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    candidates: o.Candidates = o.RETRIEVE.depth,
    fuse: o.Fuse = None,
    output: Annotated[
        Optional[Path], typer.Option("--output", help="Draw nDCG@5 over bytes per page to this PNG file.")
    ] = None,
    csv: report_comparison.Csv = None,
    latex: report_comparison.Latex = None,
    markdown: report_comparison.Markdown = None,
    page: html_report.ReportFile = None,
    failures: html_report.Failures = 30,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Compare rerankers on the same candidates.

    Shows quality, size and speed. The first stage is the baseline. Missing page caches are computed. A family may
    occur several times.

    Example: `mmrr compare --scorers minireranker,minireranker+codec=int8 --queries queries.jsonl --qrels qrels.trec`
    """
    with open_context(work, Machine(device, dtype)) as context:
        from mmrr import experiments
        from mmrr.evaluation.query_fields import read_fields

        check_output(output, is_picture=True)
        files = report_comparison.TableFiles(csv, latex, markdown)
        files.check()
        check_output(page, option="--report")
        chosen = scorings(scorers)
        query_list, judged = _questions(queries, qrels, data)
        weight, weights = fusion_of(fuse, channels)
        options = Retrieve(first_stage, "document" if data else scope, candidates, weights)
        fields = read_fields(queries, query_list) if queries else {}
        found = experiments.compare(
            context, query_list, judged, options, chosen, Rerank(fuse=weight), report.plan, fields
        )
        rows = found.rows
        if output:
            _draw(rows, output)
        files.write(found.comparison)
        if page:
            html_report.write_compared(context, found, (query_list, judged, fields), page, failures)
        missing = sorted(set(judged) - {query.query_id for query in query_list})
        report.missing_queries(missing, len(judged))
        if json_:
            counts = {"queries": len(judged), "queries_not_in_the_run": missing}
            compared = found.comparison.as_json()
            emit({**counts, "rows": [_as_json(row) for row in rows], "comparison": compared})
        else:
            _show(rows)
            report_comparison.comparison(found.comparison, counted(len(judged), "judged query", "judged queries"))


def _questions(queries: Path | None, qrels: Path | None, data: str | None) -> tuple[list[Query], Qrels]:
    """Queries and judgements from two files or from MMDocIR. Raises MmrrError for neither and for both."""
    from mmrr.evaluation import mmdocir
    from mmrr.evaluation.trec import read_qrels, read_queries

    if data is not None:
        if queries or qrels:
            raise MmrrError("--data contains its own questions; leave out --queries and --qrels")
        benchmark = mmdocir.open_benchmark(data)
        return benchmark.queries(), benchmark.qrels()
    if not (queries and qrels):
        raise MmrrError("no questions to compare on; pass --queries and --qrels, or --data with MMDocIR")
    return read_queries(queries, images=True), read_qrels(qrels)


def _as_json(row: Compared) -> dict[str, object]:
    values = {one.name: getattr(row, one.name) for one in dataclasses.fields(row) if one.name != "reranked"}
    return {**values, "artifact": report.path_of(row.reranked) if row.reranked else None}


def _show(rows: list[Compared]) -> None:
    measures = list(rows[0].metrics)
    cells = [
        [
            row.name,
            *(f"{row.metrics[measure]:.3f}" for measure in measures),
            size(row.page_bytes) if row.page_bytes else "",
            f"{row.pages_per_second:.2f}" if row.pages_per_second else "",
            f"{row.query_ms:,.0f}" if row.query_ms is not None else "",
        ]
        for row in rows
    ]
    table("", ["", *measures, "per page", "pages/s", "ms per query"], cells, to_stdout=True)
    note("pages/s: while the caches were computed; ms per query: median from the caches, which other queries may share")


def _draw(rows: list[Compared], picture: Path) -> None:
    """Quality over bytes per page. The first stage has no caches and is a horizontal line."""
    from mmrr.plots import new_figure

    figure = new_figure(figsize=(7.0, 4.5), layout="constrained")
    panel = figure.add_subplot(1, 1, 1)
    first, *others = rows
    panel.axhline(first.metrics["nDCG@5"], color="grey", linestyle="--", label=first.name)
    for row in others:
        panel.scatter(row.page_bytes, row.metrics["nDCG@5"], label=row.name)
    panel.set_xscale("log")
    panel.set_xlabel("bytes per page")
    panel.set_ylabel("nDCG@5")
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")
    figure.savefig(picture, dpi=110)
