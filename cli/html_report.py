"""``mmrr report``: one HTML file with measures, costs, queries by gain and loss, and failures with thumbnails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from mmrr.errors import MmrrError

from . import options as o
from . import report_comparison
from .context import open_context
from .terminal import check_output, counted, emit, note, size

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.experiments import ComparedScorers
    from mmrr.reporting.gather import Asked, Report
    from mmrr.types import Qrels, Query

#: The file of a report, for commands that write one besides.
ReportFile = Annotated[
    Optional[Path],
    typer.Option("--report", help="Write a report, as mmrr report does, to this HTML file.", rich_help_panel="Files"),
]
Failures = Annotated[
    int, typer.Option("--failures", min=0, help="Queries without a wanted page that are shown with thumbnails.")
]


# One parameter per option.
def report(
    output: Annotated[Path, typer.Option("--output", help="The HTML file to write.")] = Path("report.html"),
    qrels: o.Qrels = None,
    queries: Annotated[
        Optional[Path],
        typer.Option(
            "--queries",
            help="File of queries. Default: those that the rankings were made for. JSON Lines with the fields domain "
            "or language give a table for each.",
        ),
    ] = None,
    run: Annotated[
        Optional[list[Path]],
        typer.Option(
            "--run",
            metavar="[LABEL=]FILE",
            help="A TREC run, or an artifact such as rerank/FINGERPRINT. Repeatable. Default: the current ranking and "
            "its first stage.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Optional[Path],
        typer.Option("--baseline", help="The run that the others are compared with. Default: the first."),
    ] = None,
    measure: Annotated[
        Optional[list[str]],
        typer.Option(
            "--measure",
            help="Name of a measure as ir_measures writes it. Repeatable; the first one is that of plots, queries and "
            "failures.",
        ),
    ] = None,
    failures: Failures = 30,
    csv: report_comparison.Csv = None,
    latex: report_comparison.Latex = None,
    markdown: report_comparison.Markdown = None,
    work: o.Work = o.WORK,
    from_: o.From = None,
    json_: o.Json = False,
) -> None:
    """Write a report as one HTML file.

    Shows what was run, measures with intervals and tests, quality over bytes and milliseconds, each query's gain or
    loss, and the failures with thumbnails of what was found and what was wanted. The file loads nothing from elsewhere.

    Example: `mmrr report --qrels qrels.trec --run bm25.trec --run rerank/ab12cd34ef56 --output report.html`
    """
    files = report_comparison.TableFiles(csv, latex, markdown)
    check_output(output)
    files.check()
    if qrels is None:
        raise MmrrError("no judgements given; pass --qrels FILE")
    with open_context(work, chosen=from_, choices=("retrieve", "rerank"), reading=True) as context:
        from mmrr.reporting.asking import Files, ask

        asked = ask(context, Files(qrels, queries, run or (), baseline), measure, failures)
        found = write(context, asked, output)
        files.write(found.comparison)
        if json_:
            counts = {"queries": found.comparison.queries, "failures": found.n_failures}
            emit({"report": str(output), **counts, "notes": found.notes, "comparison": found.comparison.as_json()})
        else:
            typer.echo(output)


def write(context: Context, asked: Asked, output: Path) -> Report:
    """Write a report, and say what it shows and lacks."""
    from mmrr.reporting import page

    found, n_bytes = page.write(context, asked, output)
    for line in found.notes:
        note(line)
    queries = counted(found.comparison.queries, "judged query", "judged queries")
    note(f"{output}: {queries}, {counted(found.n_failures, 'failure')}, {size(n_bytes)}")
    return found


def write_compared(
    context: Context,
    found: ComparedScorers,
    questions: tuple[list[Query], Qrels, dict[str, dict[str, str]]],
    output: Path,
    failures: int,
) -> None:
    """Write the report of ``mmrr compare``. ``questions``: the queries, the judgements, the fields of the queries."""
    from mmrr.evaluation.stored_runs import NamedRun
    from mmrr.reporting.gather import Asked

    made = {row.name: row.reranked or found.retrieved for row in found.rows}
    runs = [NamedRun(name, run, made[name]) for name, run in found.runs.items()]
    queries, judged, fields = questions
    write(context, Asked(runs, queries, judged, found.comparison.measures, fields, failures), output)
