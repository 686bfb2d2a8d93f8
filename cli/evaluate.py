"""``mmrr eval``: measures a ranking against judgements. ``mmrr eval mmdocir`` runs and measures a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.config import Index, Machine, Render, Rerank, Retrieve, Scope
from mmrr.errors import MmrrError

from . import benchmarks, report, report_comparison
from . import options as o
from .aliases import Command, Group
from .context import Named, dense_order, fusion_of, indexing_of, open_context, pairs, scoring_of
from .terminal import note

if TYPE_CHECKING:
    from mmrr.context import Context
    from mmrr.evaluation.comparison import Comparison
    from mmrr.types import Run

NoRerank = Annotated[bool, typer.Option("--no-rerank", help="Measure the first stage only.")]


class BenchmarkGroup(Group):
    """``mmrr eval`` with a benchmark's name anywhere among the options, as earlier versions allowed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: see aliases.py
        """Move the benchmark's name to the front, unless it is the value of an option.

        A name that is no command is a benchmark of the list, a Hub id or a path.
        """
        parameters = [*self.params, *(one for command in self.commands.values() for one in command.params)]
        flags = {name for one in parameters if getattr(one, "is_flag", False) for name in one.opts} | {"--help", "-h"}
        for at, arg in enumerate(args):
            before = args[at - 1] if at else ""
            if arg.startswith("-") or (before.startswith("-") and "=" not in before and before not in flags):
                continue
            rest = [*args[:at], *args[at + 1 :]]
            return super().parse_args(ctx, [arg, *rest] if arg in self.commands else [benchmarks.NAME, arg, *rest])
        return super().parse_args(ctx, args)


app = typer.Typer(cls=BenchmarkGroup, invoke_without_command=True)


# One parameter per option.
@app.callback()
def evaluate(
    context: typer.Context,
    qrels: o.Qrels = None,
    run: Annotated[
        Optional[list[Path]],
        typer.Option(
            "--run",
            metavar="[LABEL=]FILE",
            help="Measure this TREC run, or the artifact rerank/FINGERPRINT, not the current one. Repeatable; "
            "LABEL names it in the tables.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Optional[Path],
        typer.Option("--baseline", help="The run that each --run is compared with. Default: the first of several."),
    ] = None,
    measure: Annotated[
        Optional[list[str]],
        typer.Option("--measure", help="Name of a measure as ir_measures writes it, e.g. nDCG@5. Repeatable."),
    ] = None,
    no_rerank: NoRerank = False,
    by_channel: Annotated[
        bool,
        typer.Option(
            "--by-channel",
            help="Measure each channel of the first stage (words, meaning, sight), each sum of them, and the current "
            "reranking in one table. Needs --queries.",
        ),
    ] = False,
    queries: Annotated[
        Optional[Path],
        typer.Option(
            "--queries",
            help="File of queries, for --by-channel and --export. JSON Lines with the fields domain or language give a "
            "table for each.",
        ),
    ] = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    csv: report_comparison.Csv = None,
    latex: report_comparison.Latex = None,
    markdown: report_comparison.Markdown = None,
    export: Annotated[
        Optional[Path],
        typer.Option(
            "--export",
            help="Write queries.jsonl, qrels.trec and qrels.tsv (BEIR) into this folder. Needs --queries.",
            rich_help_panel="Files",
        ),
    ] = None,
    work: o.Work = o.WORK,
    from_: o.From = None,
    list_: Annotated[
        bool, typer.Option("--list", help="List the named benchmarks: Hub id, sizes, licence, official measure.")
    ] = False,
    json_: o.Json = False,
) -> None:
    """Measure rankings against judgements, or run a benchmark.

    Measures the current run, or any TREC runs with --run. Runs are compared with 95 % intervals (bootstrap over
    documents) and a paired randomisation test over queries. NAME is a benchmark of --list, a Hub id, a folder or a
    file: `mmrr eval vidore-v2/esg-reports --help` shows the options. `mmrr eval mmdocir --help` describes MMDocIR.

    Example: `mmrr eval --qrels qrels.trec --run a.trec --run b.trec --baseline bm25.trec --latex table.tex`
    """
    if context.invoked_subcommand:
        return
    if list_:
        benchmarks.show_list(as_json=json_)
        return
    choices = ("index",) if by_channel else ("retrieve", "rerank")
    files = report_comparison.TableFiles(csv, latex, markdown)
    files.check()
    with open_context(work, chosen=from_, choices=choices, reading=True) as opened:
        from mmrr import pipeline

        if qrels is None:
            raise MmrrError("no judgements given; pass --qrels FILE, or name a benchmark: mmrr eval --list shows them")
        fields = _fields(queries, qrels, export)
        if by_channel:
            compared = _by_channel(opened, queries, qrels, measure, scope, fields, as_json=json_)
            files.write(compared)
            return
        if baseline and not run:
            raise MmrrError("--baseline needs --run, the TREC run to compare it with")
        if run:
            judged = pipeline.judge_runs(opened, _named(opened, run, baseline), qrels, measure, fields)
        else:
            judged = pipeline.judge_current(opened, qrels, measure, reranked=not no_rerank, fields=fields)
        files.write(judged.comparison)
        report.evaluation(judged, as_json=json_)


def _fields(queries: Path | None, qrels: Path, export: Path | None) -> dict[str, dict[str, str]]:
    """The fields of the queries by which measures are split. Writes queries and judgements into ``export``."""
    from mmrr.evaluation import query_fields
    from mmrr.evaluation.export import write_benchmark
    from mmrr.evaluation.trec import read_qrels, read_queries

    if queries is None:
        if export:
            raise MmrrError("--export writes the questions too: pass them with --queries FILE")
        return {}
    # An export holds texts: a question that is an image alone is an error there.
    found, judged = read_queries(queries, images=export is None), read_qrels(qrels)
    query_fields.check_judged(queries, found, judged)
    fields = query_fields.read_fields(queries, found)
    if export:
        written = write_benchmark(export, found, judged, fields)
        note(f"written: {', '.join(map(str, written))}")
    return fields


def _named(opened: Context, runs: list[Path], baseline: Path | None) -> dict[str, Run]:
    """The runs by their names in tables, the baseline first. One or two runs are called run and baseline."""
    from mmrr.evaluation.stored_runs import by_label, named_runs

    found = named_runs(opened.workspace, [*filter(None, [baseline]), *runs])
    if len(runs) == 1:
        labels = ["baseline", "run"] if baseline else ["run"]
        return {label: one.run for label, one in zip(labels, found, strict=True)}
    return {label: one.run for label, one in by_label(found).items()}


def _by_channel(
    opened: Context,
    queries: Path | None,
    qrels: Path,
    measures: list[str] | None,
    scope: Scope,
    fields: dict[str, dict[str, str]],
    *,
    as_json: bool,
) -> Comparison:
    """The channels, shown. Seven parameters: the options of --by-channel."""
    from mmrr import experiments
    from mmrr.evaluation.metrics import MEASURES
    from mmrr.evaluation.trec import read_qrels, read_queries

    if queries is None:
        raise MmrrError("--by-channel searches: pass the questions with --queries FILE")
    judged = read_qrels(qrels)
    found = read_queries(queries, images=True)
    compared = experiments.by_channel(opened, found, judged, measures or MEASURES[:1], scope, fields)
    report.by_channel(compared, as_json=as_json)
    return compared


# One parameter per option.
@app.command("mmdocir", cls=Command)
def mmdocir(
    data: Annotated[
        str, typer.Option("--data", help="Folder or Hub dataset id of MMDocIR.")
    ] = "MMDocIR/MMDocIR_Evaluation_Dataset",
    work: o.Work = o.WORK,
    text: Annotated[
        o.BenchmarkText, typer.Option("--text", help="Text layer of the published parquet files.")
    ] = "ocr_text",
    layouts: Annotated[
        bool, typer.Option("--layouts", help="Also rank layouts. Needs the published parquet files.")
    ] = False,
    no_rerank: NoRerank = False,
    export: Annotated[
        Optional[Path],
        typer.Option("--export", help="Also write queries.jsonl, qrels.trec and qrels.tsv (BEIR) into this folder."),
    ] = None,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    embed_option: o.EmbedOptions = None,
    text_embedder: o.TextEmbedder = None,
    text_embedder_revision: o.TextEmbedderRevision = None,
    text_option: o.TextOptions = None,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    search_option: o.SearchOptions = None,
    candidates: o.Candidates = o.RETRIEVE.depth,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    keep: o.KeptShare = None,
    band: o.Band = None,
    codec: o.Codec = None,
    option: o.PrepareOptions = None,
    exit_layer: o.ExitLayer = None,
    dense: o.Dense = False,
    prompt: o.Prompt = o.PROMPT,
    fuse: o.Fuse = None,
    renderer: o.Renderer = o.RENDERER,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """Run the chain on MMDocIR and measure it.

    Ranks the pages of each question's own document and prints the benchmark's recall tables. Without --scorer-model
    it measures the first stage only. Its artifacts become current, as those of mmrr index, precache and rerank do.

    Example: `mmrr eval mmdocir --data MMDocIR/ --embedder reader-embedder --scorer-model reader-reranker`
    """
    with open_context(work, Machine(device, dtype, workers), create=True) as context:
        from mmrr import experiments, pipeline
        from mmrr.evaluation.export import write_benchmark

        caches = pairs(option, band=band, codec=codec)
        model = None if no_rerank else scorer_model
        scoring = scoring_of(scorer, model, scorer_revision, keep, caches) if model else None
        if not (scoring or no_rerank):
            note("no --scorer-model: measuring the first stage only")
        weight, weights = fusion_of(fuse, channels)
        texts = (text_embedder, text_embedder_revision, pairs(text_option))
        named = Named(embedder, embedder_revision, pairs(embed_option), *texts)
        indexing, notes = indexing_of(context, named, first_stage, Index(), scoring, follow=False)
        for line in notes:
            note(line)
        chain = pipeline.Chain(
            Render(renderer, dpi, max_tokens, ocr, ocr_language),
            indexing,
            Retrieve(first_stage, "document", candidates, weights),
            pairs(search_option),
            scoring,
            Rerank(dense_order(dense, prompt), weight),
            pairs(None, exit_layer=exit_layer),
        )
        result = experiments.mmdocir_benchmark(context, data, text, chain, report.plan, with_layouts=layouts)
        pipeline.make_current(context, *result.steps)
        if export:
            asked = result.benchmark
            domains = {question.query_id: question.domain for question in asked.questions if question.domain}
            write_benchmark(export, asked.queries(), asked.qrels(), {"domain": domains})
        report.mmdocir(result, as_json=json_)


app.command(benchmarks.NAME, cls=Command, hidden=True)(benchmarks.benchmark)
