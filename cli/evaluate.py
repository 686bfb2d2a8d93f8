"""``mmrr eval``: measures a ranking against judgements. ``mmrr eval mmdocir`` runs and measures a benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.config import Index, Machine, Render, Rerank, Retrieve, Scope
from mmrr.errors import MmrrError

from . import options as o
from . import report
from .aliases import Command, Group
from .context import Named, dense_order, fusion_of, indexing_of, open_context, pairs, scoring_of
from .terminal import note

if TYPE_CHECKING:
    from mmrr.context import Context

_FLAGS = ("--json", "--no-rerank", "--by-channel")
NoRerank = Annotated[bool, typer.Option("--no-rerank", help="Measure the first stage only.")]


class BenchmarkGroup(Group):
    """``mmrr eval`` with a benchmark's name anywhere among the options, as earlier versions allowed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: see aliases.py
        """Move the benchmark's name to the front, unless it is the value of an option."""
        for at, arg in enumerate(args):
            is_value = at > 0 and args[at - 1].startswith("-") and args[at - 1] not in _FLAGS
            if arg in self.commands and not is_value:
                return super().parse_args(ctx, [arg, *args[:at], *args[at + 1 :]])
        return super().parse_args(ctx, args)


app = typer.Typer(cls=BenchmarkGroup, invoke_without_command=True)


# One parameter per option.
@app.callback()
def evaluate(
    context: typer.Context,
    qrels: o.Qrels = None,
    run: Annotated[Optional[Path], typer.Option("--run", help="Measure this TREC run, not the current one.")] = None,
    baseline: Annotated[
        Optional[Path], typer.Option("--baseline", help="A second TREC run to compare --run with.")
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
    queries: o.Queries = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    work: o.Work = o.WORK,
    from_: o.From = None,
    json_: o.Json = False,
) -> None:
    """Measure rankings against judgements.

    Measures the current run, or any TREC run with --run. Two runs are compared with 95 % intervals (bootstrap over
    documents). `mmrr eval mmdocir --help` describes the benchmark.

    Example: `mmrr eval --qrels qrels.trec --measure nDCG@5 --measure R@1`
    """
    if context.invoked_subcommand:
        return
    choices = ("index",) if by_channel else ("retrieve", "rerank")
    with open_context(work, chosen=from_, choices=choices, reading=True) as opened:
        from mmrr import pipeline

        if qrels is None:
            raise MmrrError("no judgements given; pass --qrels FILE, or name a benchmark: mmrr eval mmdocir --data DIR")
        if by_channel or queries:
            _by_channel(opened, queries, qrels, measure, scope, as_json=json_)
            return
        if baseline and not run:
            raise MmrrError("--baseline needs --run, the TREC run to compare it with")
        if run:
            judged = pipeline.judge_file(opened, run, qrels, measure, baseline)
        else:
            judged = pipeline.judge_current(opened, qrels, measure, reranked=not no_rerank)
        report.evaluation(judged, as_json=json_)


def _by_channel(
    opened: Context, queries: Path | None, qrels: Path, measures: list[str] | None, scope: Scope, *, as_json: bool
) -> None:
    from mmrr import experiments
    from mmrr.evaluation.metrics import MEASURES
    from mmrr.evaluation.trec import read_qrels, read_queries

    if queries is None:
        raise MmrrError("--by-channel searches: pass the questions with --queries FILE")
    judged = read_qrels(qrels)
    lines = experiments.by_channel(opened, read_queries(queries, images=True), judged, measures or MEASURES[:1], scope)
    report.by_channel(lines, len(judged), as_json=as_json)


# One parameter per option.
@app.command("mmdocir", cls=Command)
def mmdocir(
    data: Annotated[str, typer.Option("--data", help="Folder or Hub dataset id of MMDocIR.", show_default=False)],
    work: o.Work = o.WORK,
    text: Annotated[
        o.BenchmarkText, typer.Option("--text", help="Text layer of the published parquet files.")
    ] = "ocr_text",
    layouts: Annotated[
        bool, typer.Option("--layouts", help="Also rank layouts. Needs the published parquet files.")
    ] = False,
    no_rerank: NoRerank = False,
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
        report.mmdocir(result, as_json=json_)
