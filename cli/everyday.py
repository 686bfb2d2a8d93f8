"""The everyday commands: ``mmrr index``, ``precache``, ``rerank`` and ``run``. ``mmrr eval`` is in evaluate.py."""

from __future__ import annotations

from functools import partial

import typer

from mmrr.config import Index, Machine, Render, Rerank, Retrieve

from . import candidate_options as c
from . import options as o
from . import report, report_ranking
from .candidates import (
    NamedScorer,
    caches_of,
    external_ranking,
    keeping_models,
    pages_of,
    rank_images,
    refuse_options,
)
from .context import (
    Named,
    NamedPages,
    check_indexing,
    dense_order,
    drawing_machine,
    fusion_of,
    indexing_of,
    open_context,
    pairs,
    queries_from,
    scoring_machine,
    scoring_of,
)
from .report_ranking import Narrow, Shown
from .terminal import check_output


# One parameter per option.
def index(
    documents: o.Documents,
    work: o.Work = o.WORK,
    replace: o.Replace = False,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    dim: o.Dim = 0,
    embed_option: o.EmbedOptions = None,
    text_embedder: o.TextEmbedder = None,
    text_embedder_revision: o.TextEmbedderRevision = None,
    text_option: o.TextOptions = None,
    first_stage: o.FirstStageOption = None,
    faiss_factory: o.Faiss = o.INDEX.faiss_factory,
    language: o.LanguageOption = o.INDEX.language,
    renderer: o.Renderer = o.RENDERER,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    convert: o.Convert = o.RENDER.convert,
    password: o.Password = None,
    tiles: o.Tiles = o.RENDER.tiles,
    metadata: c.StoredMetadata = None,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
    workers: o.Workers = o.MACHINE.workers,
    page_timeout: o.PageTimeout = o.MACHINE.page_seconds,
    page_memory: o.PageMemory = o.PAGE_MEMORY,
) -> None:
    """Render, embed and index documents.

    Renders each page to an image, embeds it if there is an --embedder, and builds the FAISS and BM25 indexes.

    The documents are added to those that the workspace holds. A folder that is given again is synchronised: new,
    changed, renamed and deleted files are counted, and only the new work is done. Documents of other folders stay.
    --replace makes the collection exactly what is named. `mmrr rm --document NAME` takes single documents out.

    Example: `mmrr index reports/ --embedder reader-embedder`
    """
    machine = drawing_machine(Machine(device, dtype, workers), page_timeout, page_memory)
    with open_context(work, machine, create=True) as context:
        from mmrr import pipeline

        embed_options = pairs(embed_option, dim=dim or None)
        texts = (text_embedder, text_embedder_revision, pairs(text_option))
        named = Named(embedder, embedder_revision, embed_options, *texts)
        indexing, notes = indexing_of(context, named, first_stage, Index(faiss_factory, language))
        rendering = Render(renderer, dpi, max_tokens, ocr, ocr_language, convert, password, tiles)
        check = partial(check_indexing, context, indexing, notes)
        found = pipeline.render_documents(
            context, documents, rendering, replace=replace, check=check, described=metadata
        )
        report.documents(found.manifest, found.changes)
        made = pipeline.index_pages(context, found.manifest, indexing)
        typer.echo(made.path)


# One parameter per option.
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
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Cache every page for the reranker.

    Chooses each page's visual tokens, reads the page once with the scorer, and writes the resulting cache to disk.
    Only new pages are computed.

    Example: `mmrr precache --scorer-model reader-reranker --codec int8`
    """
    with open_context(work, Machine(device, dtype), from_, ("index", "prune")) as context:
        from mmrr import pipeline

        scoring = scoring_of(scorer, scorer_model, scorer_revision, keep, pairs(option, band=band, codec=codec))
        made = pipeline.precache_pages(context, scoring, report.plan)
        report.without_text(context, made)
        typer.echo(made.path)


# One parameter per option.
def rerank(
    ctx: typer.Context,
    query: o.Question = None,
    query_image: o.QueryImage = None,
    queries: o.Queries = None,
    work: o.Work = o.WORK,
    run_file: c.ExternalRun = None,
    id_map: c.IdMap = None,
    images: c.Images = None,
    output: c.RankingOutput = None,
    output_format: c.OutputFormatOption = None,
    threshold: c.Threshold = None,
    calibration: c.Calibration = None,
    one_per_document: c.OnePerDocument = False,
    fold_duplicates: c.FoldDuplicates = False,
    document: c.Document = None,
    pages: c.Pages = None,
    where: c.Where = None,
    metadata: c.Metadata = None,
    top_k: o.TopK = 10,
    candidates: o.Candidates = o.RETRIEVE.depth,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    scope: o.ScopeOption = o.RETRIEVE.scope,
    search_option: o.SearchOptions = None,
    scorer_model: o.ScorerModel = None,
    scorer_revision: o.ScorerRevision = None,
    scorer: o.Scorer = o.SCORER,
    keep: o.KeptShare = None,
    band: o.Band = None,
    codec: o.Codec = None,
    option: o.PrepareOptions = None,
    exit_layer: o.ExitLayer = None,
    score_option: o.ScoreOptions = None,
    dense: o.Dense = False,
    prompt: o.Prompt = o.PROMPT,
    fuse: o.Fuse = None,
    from_: o.From = None,
    json_: o.Json = False,
    memory_budget: o.MemoryBudget = o.MEMORY_BUDGET,
    resident: o.Resident = o.RESIDENT,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
) -> None:
    """Find pages and rerank them from their caches.

    The first stage finds candidates, the scorer of the last mmrr precache ranks them. Give one query, a text, an image
    (--query-image) or both; or a file with --queries. --run takes the candidates of another system. With
    --scorer-model, pages without a cache are read now, and only those.

    Example: `mmrr rerank "When is the thesis due?" --candidates 20`
    """
    narrow = Narrow(threshold, one_per_document, fold_duplicates, report_ranking.read_calibration(calibration))
    is_file = query is None and query_image is None
    shown = Shown(top_k, output, output_format, json_, is_file=is_file, narrow=narrow)
    check_output(output)
    report_ranking.check_format(shown)
    score_options = pairs(score_option, exit_layer=exit_layer)
    model = (scorer, scorer_model, scorer_revision)
    named = NamedScorer.read(ctx, model, keep, pairs(option, band=band, codec=codec))
    named_pages = NamedPages(document, pages, where, metadata)
    if images:
        others = {"document": document, "pages": pages, "where": where, "metadata": metadata, "dense": dense}
        others |= {"first_stage": first_stage, "one_per_document": one_per_document, "fold_duplicates": fold_duplicates}
        refuse_options("--images", run=run_file, map=id_map, fuse=fuse, channels=channels, **others)
        rank_images(
            images, queries_from(query, queries, None, query_image), named, score_options, Machine(device, dtype), shown
        )
        return
    machine = scoring_machine(device, memory_budget, resident, dtype)
    with open_context(work, machine, from_, ("index", "precache"), reading=True) as opened:
        from mmrr import pipeline

        context = keeping_models(opened)
        weight, weights = fusion_of(fuse, channels)
        options = Rerank(dense_order(dense, prompt), weight)
        scoring = named.scoring(context)
        collection = pages_of(context, run_file)
        doc_id, scope, within = named_pages.read(collection, scope, is_file=is_file or run_file is not None)
        if run_file:
            refuse_options("--run", channels=channels, first_stage=first_stage)
            asked = (query, queries, query_image)
            ranking = external_ranking(context, run_file, id_map, asked, candidates, within)
        else:
            refuse_options("a search (no --run)", map=id_map)
            query_list = queries_from(query, queries, doc_id, query_image)
            how = Retrieve(first_stage, scope, candidates, weights)
            ranking = pipeline.search(context, query_list, how, pairs(search_option), within=within)
        cached = caches_of(context, scoring, ranking, build=options.dense is None)
        ranking = pipeline.rerank_run(context, ranking, options, score_options, cached)
        if is_file:  # mmrr eval measures a file of queries, not a query from the command line
            pipeline.remember(context, ranking)
        report_ranking.ranking(context, ranking, shown)


# One parameter per option.
def run(
    documents: o.Documents,
    queries: o.RequiredQueries,
    work: o.Work = o.WORK,
    output: o.RunOutput = None,
    qrels: o.Qrels = None,
    top_k: o.TopK = 3,
    embedder: o.Embedder = None,
    embedder_revision: o.EmbedderRevision = None,
    embed_option: o.EmbedOptions = None,
    text_embedder: o.TextEmbedder = None,
    text_embedder_revision: o.TextEmbedderRevision = None,
    text_option: o.TextOptions = None,
    first_stage: o.FirstStageOption = None,
    channels: o.Channels = None,
    language: o.LanguageOption = o.INDEX.language,
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
    fuse: o.Fuse = None,
    renderer: o.Renderer = o.RENDERER,
    dpi: o.Dpi = o.RENDER.dpi,
    max_tokens: o.MaxTokens = o.RENDER.max_tokens,
    ocr: o.Ocr = o.RENDER.ocr,
    ocr_language: o.OcrLanguage = o.RENDER.ocr_language,
    convert: o.Convert = o.RENDER.convert,
    password: o.Password = None,
    tiles: o.Tiles = o.RENDER.tiles,
    device: o.Device = o.MACHINE.device,
    dtype: o.Dtype = o.DTYPE,
    workers: o.Workers = o.MACHINE.workers,
    page_timeout: o.PageTimeout = o.MACHINE.page_seconds,
    page_memory: o.PageMemory = o.PAGE_MEMORY,
) -> None:
    """Run the whole chain in one command.

    Documents and queries in, reranked pages out: index, precache, rerank and, with --qrels, eval.

    Example: `mmrr run reports/ --queries queries.jsonl --scorer-model reader-reranker`
    """
    machine = drawing_machine(Machine(device, dtype, workers), page_timeout, page_memory)
    with open_context(work, machine, create=True) as context:
        from mmrr import pipeline

        query_list = queries_from(None, queries)
        check_output(output)
        scoring = scoring_of(scorer, scorer_model, scorer_revision, keep, pairs(option, band=band, codec=codec))
        pipeline.check_scorer(scorer, query_list)
        weight, weights = fusion_of(fuse, channels)
        texts = (text_embedder, text_embedder_revision, pairs(text_option))
        named = Named(embedder, embedder_revision, pairs(embed_option), *texts)
        indexing, notes = indexing_of(context, named, first_stage, Index(language=language), scoring)
        check = partial(check_indexing, context, indexing, notes)
        rendering = Render(renderer, dpi, max_tokens, ocr, ocr_language, convert, password, tiles)
        found = pipeline.render_documents(context, documents, rendering, check=check)
        report.documents(found.manifest, found.changes)
        pipeline.index_pages(context, found.manifest, indexing)
        report.without_text(context, pipeline.precache_pages(context, scoring, report.plan))
        ranking = pipeline.search(context, query_list, Retrieve(first_stage, scope, candidates, weights), {})
        ranking = pipeline.rerank_run(context, ranking, Rerank(fuse=weight), pairs(None, exit_layer=exit_layer))
        pipeline.remember(context, ranking)
        report_ranking.ranking(context, ranking, Shown(top_k, output, is_file=True, path=qrels is None))
        if qrels:
            report.evaluation(pipeline.judge_current(context, qrels, None, reranked=True), as_json=False)
