"""The ``mmrr`` command. A command parses, calls one function of the library, and reports.

Nothing heavy is imported until a command runs: ``mmrr --help`` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, cast

import typer

from mmrr import __version__
from mmrr.config import DenseOrder, Index, Machine, Model, Prune, PruneBy, Render, Rerank
from mmrr.errors import MmrrError

from . import options as o
from . import report
from .bench import bench
from .blend import blend as blend_runs
from .compare import compare
from .draw import draw
from .memory import keep_freed
from .mine import mine
from .probe import probe
from .session import known_models, memory_size, open_context, search_options
from .show import check_output, note, pairs, plain_errors
from .train import train

if TYPE_CHECKING:
    from mmrr.pipeline import Scoring
    from mmrr.types import Query

app = typer.Typer(
    name="mmrr",
    help="Find the right page in thousands of PDF pages by looking at the pages.\n\n"
    "Everyday use: mmrr index, mmrr precache, mmrr rerank, mmrr eval. Each writes its result into the workspace "
    "(--work), prints where as the last line of stdout, and does nothing twice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Entry point of the console script."""
    keep_freed()
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _embedder(
    name: str | None, revision: str | None, first_stage: str | None, scoring: Scoring | None = None
) -> Model | None:
    """The embedder there is work for: to find pages, or to prune what ``scoring`` caches of them."""
    if first_stage == "bm25" and not (name and scoring and scoring.prunes):
        return None
    if name is None and first_stage:
        raise MmrrError(f"--first-stage {first_stage} needs --embedder, a local path or a Hub id")
    if name is None:
        note("no --embedder: pages are found by their text layer alone (BM25)")
    return Model(name, revision) if name else None


def _scoring(
    family: str, model: str | None, revision: str | None, keep: float | None, options: dict[str, str]
) -> Scoring:
    from mmrr.pipeline import Scoring

    if model is None:
        own, published = known_models(family)
        ways = ["a local path", *(f"a Hub id such as {name}" for name in published[:1])]
        ways += [f"{name}, the small one that comes with mmrr" for name in own[:1]]
        raise MmrrError(f"which reranker? pass --scorer-model (or set MMRR_SCORER_MODEL): {', or '.join(ways)}")
    return Scoring(family, Model(model, revision), options, keep)


def _order(dense: bool, prompt: str) -> DenseOrder | None:
    if prompt not in ("vision-first", "query-first"):
        raise MmrrError(f"--prompt {prompt}: expected vision-first or query-first")
    if prompt == "query-first" and not dense:
        raise MmrrError("--prompt query-first goes with --dense: the caches are vision-first")
    return cast("DenseOrder", prompt) if dense else None


def _queries(query: str | None, path: Path | None, document: str | None = None, scope: str = "") -> list[Query]:
    from mmrr.evaluation.trec import read_queries
    from mmrr.types import Query

    if (query is None) == (path is None):
        raise MmrrError("give one query on the command line, or --queries FILE")
    if document is not None and (path is not None or scope != "document"):
        raise MmrrError("--document goes with a query on the command line and --scope document")
    if path is not None:
        return read_queries(path)
    if query is None or not query.strip():
        raise MmrrError("the query is empty; expected a question or some words")
    if any("\ud800" <= char <= "\udfff" for char in query):
        raise MmrrError("the query is not text in UTF-8")
    return [Query("query", query, document)]


@app.command()
def index(
    documents: o.Documents,
    work: o.Work = o.WORK,
    replace: o.Replace = False,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    dim: o.Dim = 0,
    embed_option: o.EmbedOptions = None,
    first_stage: o.FirstStageOption = None,
    faiss_factory: o.Faiss = o.INDEX.faiss_factory,
    renderer: o.Renderer = o.RENDER.renderer,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """Render documents, embed their pages, build the FAISS and BM25 indexes.

    The documents are added to those that the workspace holds. A folder that is given again is synchronised: new,
    changed, renamed and deleted files in it are counted, and only new pages are computed. Documents of other folders
    stay. --replace makes the collection exactly what is named; mmrr rm --document takes single documents out.
    """
    with open_context(work, Machine(device, dtype, workers), create=True) as session:
        from mmrr import pipeline

        model = _embedder(embedder, embedder_revision, first_stage)
        found = pipeline.render_documents(session, documents, Render(renderer, dpi, max_tokens, ocr), replace=replace)
        report.documents(found.manifest, found.changes)
        made = pipeline.index_pages(
            session, found.manifest, model, pairs(embed_option, dim=dim or None), Index(faiss_factory)
        )
        typer.echo(made.path)


@app.command()
def render(
    documents: o.Documents,
    work: o.Work = o.WORK,
    replace: o.Replace = False,
    renderer: o.Renderer = o.RENDER.renderer,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """Only render documents to page images and text. mmrr index does this too, and adds in the same way."""
    with open_context(work, Machine(workers=workers), create=True) as session:
        from mmrr import pipeline

        found = pipeline.render_documents(session, documents, Render(renderer, dpi, max_tokens, ocr), replace=replace)
        report.documents(found.manifest, found.changes)
        typer.echo(found.manifest.path)


@app.command()
def retrieve(
    query: Annotated[Optional[str], typer.Argument(help="A question; or use --queries.", show_default=False)] = None,
    queries: Annotated[Optional[Path], typer.Option(help="JSONL: query_id, text, perhaps doc_id.")] = None,
    work: o.Work = o.WORK,
    output: Annotated[Optional[Path], typer.Option(help="Write the TREC run here too.")] = None,
    document: Annotated[Optional[str], typer.Option(help="Search this document only (with --scope document).")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Pages to show.")] = 10,
    candidates: o.Candidates = o.RETRIEVE.depth,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    from_: o.From = None,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Only the first stage: rank pages by vectors, text, or both. mmrr rerank does this too."""
    with open_context(work, Machine(device), from_) as session:
        from mmrr import pipeline

        asked = _queries(query, queries, document, scope)
        check_output(output)
        found = pipeline.search(session, asked, search_options(first_stage, scope, candidates), pairs(search_option))
        if queries:  # mmrr eval follows a file of queries, not a query on the command line
            pipeline.remember(session, found)
        report.ranking(session, found, top_k, output, as_json=json_, is_file=queries is not None)


@app.command()
def prune(
    work: o.Work = o.WORK,
    keep: Annotated[
        float, typer.Option(help="Share of visual tokens kept, by the embedder's attention.")
    ] = o.PRUNE.keep,
    by: Annotated[str, typer.Option(help="attention, the embedder's; or random, as a baseline.")] = o.PRUNE.by,
    from_: o.From = None,
) -> None:
    """Only choose each page's visual tokens. mmrr precache does this too."""
    with open_context(work, chosen=from_) as session:
        from mmrr import pipeline

        if by not in ("attention", "random"):
            raise MmrrError(f"--by {by}: expected attention or random")
        made = pipeline.prune_pages(session, Prune(keep, cast("PruneBy", by)))
        note(f"kept {made.content['kept']} of {made.content['tokens']} visual tokens on {made.content['pages']} pages")
        typer.echo(made.path)


@app.command()
def precache(
    work: o.Work = o.WORK,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    keep: o.KeptShare = None,
    band: o.Band = None,
    codec: o.Codec = None,
    option: o.PrepareOptions = None,
    from_: o.From = None,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
) -> None:
    """Prune, then read every page once and write its visual cache to disk. Only new pages are computed."""
    with open_context(work, Machine(device, dtype), from_, ("index", "prune")) as session:
        from mmrr import pipeline

        scoring = _scoring(scorer, scorer_model, scorer_revision, keep, pairs(option, band=band, codec=codec))
        made = pipeline.precache_pages(session, scoring, report.plan)
        report.without_text(session, made)
        typer.echo(made.path)


@app.command()
def view(
    page: Annotated[str, typer.Argument(help="A page as rankings name it, e.g. report.pdf/0007.", show_default=False)],
    work: o.Work = o.WORK,
    output: Annotated[Path, typer.Option(help="The picture to write.")] = Path("page.png"),
    from_: o.From = None,
) -> None:
    """Draw a page with the visual tokens that pruning kept; the others are faded."""
    with open_context(work, chosen=from_, choices=("prune",)) as session:
        from mmrr import pipeline

        check_output(output)
        if output.suffix.lower() != ".png":
            raise MmrrError(f"--output {output}: expected a name that ends in .png")
        report.picture(pipeline.kept_picture(session, page), output)
        typer.echo(output)


@app.command()
def rerank(
    query: Annotated[Optional[str], typer.Argument(help="A question; or use --queries.", show_default=False)] = None,
    queries: Annotated[Optional[Path], typer.Option(help="JSONL: query_id, text, perhaps doc_id.")] = None,
    work: o.Work = o.WORK,
    output: Annotated[Optional[Path], typer.Option(help="Write the TREC run here too.")] = None,
    document: Annotated[Optional[str], typer.Option(help="Search this document only (with --scope document).")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Pages to show.")] = 10,
    candidates: o.Candidates = o.RETRIEVE.depth,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    exit_layer: o.ExitLayer = None,
    score_option: o.ScoreOptions = None,
    dense: o.Dense = False,
    prompt: o.Prompt = "vision-first",
    blend: o.Blend = None,
    from_: o.From = None,
    json_: o.Json = False,
    memory_budget: o.MemoryBudget = "4GiB",
    resident: o.Resident = "0",
    device: o.Device = o.MACHINE.device,
) -> None:
    """Find pages for a question and rerank them from their caches."""
    with plain_errors():
        budget, kept = memory_size("--memory-budget", memory_budget), memory_size("--resident", resident, or_none=True)
        machine = Machine(device, memory=budget, resident=kept)
    with open_context(work, machine, from_, ("index", "precache")) as session:
        from mmrr import pipeline

        asked = _queries(query, queries, document, scope)
        check_output(output)
        how = Rerank(_order(dense, prompt), blend)
        session.current("precache")  # said before the search, not after it
        found = pipeline.search(session, asked, search_options(first_stage, scope, candidates), pairs(search_option))
        found = pipeline.rerank_run(session, found, how, pairs(score_option, exit_layer=exit_layer))
        if queries:  # mmrr eval follows a file of queries, not a query on the command line
            pipeline.remember(session, found)
        report.ranking(session, found, top_k, output, as_json=json_, is_file=queries is not None)


@app.command("eval")
def evaluate(
    benchmark: Annotated[
        Optional[str], typer.Argument(help="mmdocir, or nothing for --qrels of your own.", show_default=False)
    ] = None,
    work: o.Work = o.WORK,
    qrels: Annotated[Optional[Path], typer.Option(help="TREC judgements: query_id 0 page_id relevance.")] = None,
    run: Annotated[Optional[Path], typer.Option(help="Judge this TREC run instead of the newest.")] = None,
    baseline: Annotated[Optional[Path], typer.Option(help="With --run: the TREC run to compare it with.")] = None,
    measure: Annotated[Optional[list[str]], typer.Option(help="ir_measures names, e.g. nDCG@5; repeatable.")] = None,
    no_rerank: Annotated[bool, typer.Option("--no-rerank", help="The first stage alone.")] = False,
    data: Annotated[Optional[str], typer.Option(help="mmdocir: folder or Hub dataset id.")] = None,
    text: Annotated[str, typer.Option(help="mmdocir as published: ocr_text or vlm_text as text layer.")] = "ocr_text",
    layouts: Annotated[bool, typer.Option("--layouts", help="mmdocir as published: rank layouts too.")] = False,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    embed_option: o.EmbedOptions = None,
    first_stage: o.FirstStageOption = None,
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
    prompt: o.Prompt = "vision-first",
    blend: o.Blend = None,
    renderer: o.Renderer = o.RENDER.renderer,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    json_: o.Json = False,
    from_: o.From = None,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """Measure the newest run against judgements, or the whole chain on MMDocIR (mmrr eval mmdocir --data DIR).

    The artifacts of mmrr eval mmdocir become current, as those of mmrr index, precache and rerank do.
    With --run nothing becomes current.
    """
    stages = ("retrieve", "rerank")
    with open_context(work, Machine(device, dtype, workers), from_, stages, create=benchmark is not None) as session:
        from mmrr import experiments, pipeline

        if benchmark is None:
            if qrels is None:
                raise MmrrError(
                    "what to judge by? pass --qrels FILE, or name a benchmark: mmrr eval mmdocir --data DIR"
                )
            if baseline and not run:
                raise MmrrError("--baseline goes with --run: which run is to be compared with it?")
            if run:
                judged = pipeline.judge_file(session, run, qrels, measure, baseline)
            else:
                judged = pipeline.judge_current(session, qrels, measure, reranked=not no_rerank)
            report.evaluation(judged, as_json=json_)
            return
        if benchmark != "mmdocir" or data is None:
            raise MmrrError("expected: mmrr eval mmdocir --data FOLDER-OR-HUB-ID")
        if text not in ("ocr_text", "vlm_text"):
            raise MmrrError(f"--text {text}: expected ocr_text or vlm_text")
        scoring = None
        if not no_rerank and scorer_model is None:
            note("no --scorer-model: evaluating the first stage alone")
        elif not no_rerank:
            scoring = _scoring(scorer, scorer_model, scorer_revision, keep, pairs(option, band=band, codec=codec))
        chain = pipeline.Chain(
            Render(renderer, dpi, max_tokens, ocr),
            _embedder(embedder, embedder_revision, first_stage, scoring),
            pairs(embed_option),
            Index(),
            search_options(first_stage, "document", candidates),
            pairs(search_option),
            scoring,
            Rerank(_order(dense, prompt), blend),
            pairs(None, exit_layer=exit_layer),
        )
        result = experiments.mmdocir_benchmark(
            session, data, cast("Any", text), chain, report.plan, with_layouts=layouts
        )
        pipeline.make_current(session, *result.steps)
        report.mmdocir(result, as_json=json_)


@app.command()
def run(
    documents: o.Documents,
    queries: Annotated[Path, typer.Option(help="JSONL: query_id, text, perhaps doc_id.")],
    work: o.Work = o.WORK,
    output: Annotated[Optional[Path], typer.Option(help="Write the TREC run here too.")] = None,
    qrels: Annotated[Optional[Path], typer.Option(help="TREC judgements, to measure the run with.")] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Pages to show a query.")] = 3,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    embed_option: o.EmbedOptions = None,
    first_stage: o.FirstStageOption = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    candidates: o.Candidates = o.RETRIEVE.depth,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    keep: o.KeptShare = None,
    band: o.Band = None,
    codec: o.Codec = None,
    option: o.PrepareOptions = None,
    exit_layer: o.ExitLayer = None,
    blend: o.Blend = None,
    renderer: o.Renderer = o.RENDER.renderer,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.MACHINE.dtype,
    workers: o.Workers = o.MACHINE.workers,
) -> None:
    """The whole chain: documents and queries in, reranked pages out."""
    with open_context(work, Machine(device, dtype, workers), create=True) as session:
        from mmrr import pipeline

        asked = _queries(None, queries)
        check_output(output)
        scoring = _scoring(scorer, scorer_model, scorer_revision, keep, pairs(option, band=band, codec=codec))
        model = _embedder(embedder, embedder_revision, first_stage, scoring)
        collected = pipeline.render_documents(session, documents, Render(renderer, dpi, max_tokens, ocr))
        report.documents(collected.manifest, collected.changes)
        pipeline.index_pages(session, collected.manifest, model, pairs(embed_option), Index())
        report.without_text(session, pipeline.precache_pages(session, scoring, report.plan))
        found = pipeline.search(session, asked, search_options(first_stage, scope, candidates), {})
        found = pipeline.rerank_run(session, found, Rerank(fuse=blend), pairs(None, exit_layer=exit_layer))
        pipeline.remember(session, found)
        report.ranking(session, found, top_k, output, as_json=False, is_file=True, path=qrels is None)
        if qrels:
            judged = pipeline.judge_current(session, qrels, None, reranked=True)
            report.evaluation(judged, as_json=False)


app.command()(bench)
app.command("blend")(blend_runs)
app.command()(compare)
app.command()(draw)
app.command()(mine)
app.command()(probe)
app.command()(train)


@app.command("ls")
def list_artifacts(
    work: o.Work = o.WORK,
    documents: Annotated[bool, typer.Option("--documents", help="The newest index's documents instead.")] = False,
    json_: o.Json = False,
) -> None:
    """Show what a workspace holds, how it was made, its size and its age. A star marks what commands use."""
    with open_context(work) as session:
        if documents:
            report.document_list(session.current("pages"), as_json=json_)
        else:
            report.artifacts(session.workspace, as_json=json_)


@app.command("rm")
def remove(
    names: Annotated[
        Optional[list[str]], typer.Argument(help="stage/fingerprint as shown by mmrr ls.", show_default=False)
    ] = None,
    work: o.Work = o.WORK,
    document: Annotated[
        Optional[list[str]],
        typer.Option(help="Take this document out of the collection and the index: its id or file name; repeatable."),
    ] = None,
    cascade: Annotated[bool, typer.Option("--cascade", help="Remove what was made of them too.")] = False,
) -> None:
    """Remove artifacts and the data nothing else lists. Without names: only data that nothing lists.

    With --document: take documents out of the collection. Their data stays as long as an artifact lists it.
    """
    with open_context(work) as session:
        from mmrr import pipeline
        from mmrr.workspace.gc import remove as remove_artifacts

        if document and (names or cascade):
            raise MmrrError("--document takes documents out of the collection: leave out artifacts and --cascade")
        if document:
            found = pipeline.remove_documents(session, document)
            report.documents(found.manifest, found.changes)
            typer.echo(found.manifest.path)
            return
        report.removal(remove_artifacts(session.workspace, names or [], cascade=cascade))


@app.command()
def verify(
    work: o.Work = o.WORK,
    rescore: Annotated[
        int, typer.Option(min=0, help="Also compare this many cached scores with forwards that use no cache.")
    ] = 0,
    json_: o.Json = False,
    device: o.Device = o.MACHINE.device,
) -> None:
    """Read all of a workspace and say what is damaged or missing, and what mends it. Exit code 1 if anything is."""
    with open_context(work, Machine(device)) as session:
        from mmrr import pipeline
        from mmrr.workspace.verify import verify as verify_workspace

        checked = verify_workspace(session.workspace, session.progress)
        rescored = pipeline.rescore(session, rescore) if rescore and not checked.problems else None
        report.verification(checked, rescored, as_json=json_)
        if checked.problems:
            raise typer.Exit(1)


@app.command()
def models(json_: o.Json = False) -> None:
    """List the model families here, their options, and published checkpoints they load."""
    with plain_errors():
        report.models(as_json=json_)


@app.command()
def doctor(work: o.Work = o.WORK, json_: o.Json = False) -> None:
    """Say what this machine can do: renderer, device, number format, network, disk."""
    with plain_errors():
        report.doctor(work, as_json=json_)


if __name__ == "__main__":
    main()
