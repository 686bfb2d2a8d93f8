"""``mmrr eval NAME``: runs a published benchmark and measures it. ``mmrr eval --list`` names the known ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from mmrr.config import Index, Machine, Render, Rerank, Retrieve
from mmrr.errors import MmrrError

from . import options as o
from . import report
from .context import Named, dense_order, fusion_of, indexing_of, open_context, pairs, scoring_of
from .terminal import counted, emit, note, table

if TYPE_CHECKING:
    from mmrr.benchmarks import Result
    from mmrr.evaluation.published import Published

#: The command behind ``mmrr eval NAME``; it is not in the help.
NAME = "benchmark"
#: Candidates that a note names.
_MOST_NAMED = 3


# One parameter per option.
def benchmark(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of --list, a Hub id, a folder or a file.", show_default=False)
    ],
    work: o.Work = o.WORK,
    split: Annotated[Optional[str], typer.Option("--split", help="Split of the set. Default: the usual one.")] = None,
    config: Annotated[
        Optional[str], typer.Option("--config", help="Only this part of the set, such as a language. Default: all.")
    ] = None,
    limit: Annotated[
        Optional[int],
        typer.Option("--limit", min=1, help="Quick look: the first queries alone, over a part of the documents."),
    ] = None,
    run: Annotated[
        Optional[Path],
        typer.Option("--run", help="Rank the candidates of this run (TREC, RankLLM, mteb), by ids of the set."),
    ] = None,
    export: Annotated[
        Optional[Path],
        typer.Option("--export", help="Also write queries, judgements and page images to this folder."),
    ] = None,
    no_rerank: Annotated[bool, typer.Option("--no-rerank", help="Measure the first stage only.")] = False,
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
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Run the chain on a published benchmark and measure it.

    NAME is a benchmark of `mmrr eval --list`, or any set in BEIR's shape or of query and image pairs: a Hub id, a
    folder, or a file. With HF_HUB_OFFLINE only the cache is read. Without --scorer-model it measures the first stage
    only. Its artifacts become current, as those of mmrr index and rerank do.

    Example: `mmrr eval vidore-v2/esg-reports --config english --embedder reader-embedder`
    """
    from mmrr.evaluation import published, run_files
    from mmrr.evaluation.benchmarks import find

    entry = find(name)
    if entry.form == "mmdocir":
        raise MmrrError(f"{entry.name} has its own command: mmrr eval mmdocir --data {entry.hub}")
    with open_context(work, Machine(device, dtype), create=True) as context:
        from mmrr import benchmarks, pipeline

        opened = published.open_published(entry, split, config, limit)
        _say(opened)
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
            Render(max_tokens=max_tokens),
            indexing,
            Retrieve(first_stage, "corpus", candidates, weights),
            pairs(search_option),
            scoring,
            Rerank(dense_order(dense, prompt), weight),
            pairs(None, exit_layer=exit_layer),
        )
        given = run_files.read_external(run) if run else None
        result = benchmarks.run(context, opened, chain, given, report.plan)
        pipeline.make_current(context, *result.steps)
        if export:
            benchmarks.write_export(context, opened, result.ranking.collection, export)
        _report(result, export, as_json=json_)


def _say(opened: Published) -> None:
    """One line on what is read, and one if it is a part alone."""
    pages = counted(len(opened.page_ids), "page" if opened.has_images else "text")
    parts = f" ({', '.join(opened.configs)})" if opened.configs else ""
    queries = counted(len(opened.queries), "query", "queries")
    note(f"{opened.entry.name}, split {opened.split}: {queries}{parts} over {pages}")
    if opened.partial:
        note(f"partial (--limit): {opened.partial}; the measures are not those of the benchmark")


def _report(result: Result, export: Path | None, *, as_json: bool) -> None:
    opened, metrics = result.published, result.metrics.content["metrics"]
    if result.unknown:
        named = ", ".join(result.unknown[:_MOST_NAMED]) + (", ..." if len(result.unknown) > _MOST_NAMED else "")
        note(f"{counted(len(result.unknown), 'candidate')} without a page of the set, left out: {named}")
    if as_json:
        entry = opened.entry
        what: dict[str, Any] = {
            "benchmark": entry.name,
            "hub": entry.hub,
            "split": opened.split,
            "configs": list(opened.configs),
            "queries": len(opened.queries),
            "pages": len(opened.page_ids),
            "partial": opened.partial or None,
            "candidates": result.fixed or "first stage",
            "measure": opened.measure,
        }
        paths = {"artifact": str(result.metrics.path), "run": str(result.run_path), "export": export and str(export)}
        emit({**what, **paths, "metrics": metrics})
        return
    runs = [name for name in ("first_stage", "reranked") if name in metrics]
    heads = {"first_stage": f"candidates of {result.fixed}" if result.fixed else "first stage", "reranked": "reranked"}
    columns = ["measure", *(heads[name] for name in runs)]
    rows = [[name, *(f"{metrics[run][name]:.4f}" for run in runs)] for name in metrics[runs[0]]]
    if "difference" in metrics:
        columns += ["difference", "95 % interval"]
        for row in rows:
            low, high = metrics["interval"][row[0]]
            row += [f"{metrics['difference'][row[0]]:+.4f}", f"{low:+.3f} to {high:+.3f}"]
    title = f"{opened.entry.name}; official measure {opened.measure}"
    table(title + (f"; PARTIAL, {opened.partial}" if opened.partial else ""), columns, rows, to_stdout=True)
    if "configs" in metrics:
        parts = metrics["configs"]
        measures = list(parts["mean"])
        cells = [[name, *(f"{values[one]:.4f}" for one in measures)] for name, values in parts.items()]
        table(f"by part, {heads[runs[-1]]}", ["part", *measures], cells, to_stdout=True)
    note(f"run: {result.run_path}")
    typer.echo(result.metrics.path)


def show_list(*, as_json: bool) -> None:
    """List the named benchmarks."""
    from mmrr.evaluation.benchmarks import entries

    known = list(entries().values())
    if as_json:
        emit({"benchmarks": [dataclasses.asdict(entry) for entry in known]})
        return
    head = ("name", "queries", "pages", "measure", "licence", "Hub id")
    rows = [
        (
            entry.name,
            f"{entry.queries:,}" if entry.queries else "-",
            f"{entry.pages:,}" if entry.pages else "-",
            entry.measure,
            entry.licence or "-",
            entry.hub,
        )
        for entry in known
    ]
    # Lines and no table: a name that is cut at the edge of a terminal cannot be copied.
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, *rows):
        cells = [row[at].rjust(n) if at in (1, 2) else row[at].ljust(n) for at, n in enumerate(widths)]
        typer.echo("  ".join(cells).rstrip())
    groups = {entry.name.partition("/")[0]: entry for entry in known}
    for group, entry in groups.items():
        note(f"{group}: {entry.about}" + (f" ({entry.note})" if entry.note else ""))
