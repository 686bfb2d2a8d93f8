"""The options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from mmrr.config import Index, Machine, Prune, Render, Retrieve

_MODELS, _PAGES, _SEARCH, _MACHINE = "Models", "Pages", "Search", "Machine"

Work = Annotated[
    Path, typer.Option("--work", envvar="MMRR_WORK", help="Workspace folder: everything mmrr makes lies there.")
]
Documents = Annotated[list[Path], typer.Argument(help="PDFs, page images, or folders of them.", show_default=False)]
Replace = Annotated[
    bool,
    typer.Option("--replace", help="Make the collection exactly these documents; without it they are added to it."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout instead of a table.")]

Embedder = Annotated[
    Optional[str],
    typer.Option(
        envvar="MMRR_EMBEDDER",
        help="Qwen3-VL embedding checkpoint: local path, Hub id (Qwen/Qwen3-VL-Embedding-2B), or reader-embedder, "
        "the small one that comes with mmrr. "
        "Without one, pages are found by their text layer alone and cached whole.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
EmbedderRevision = Annotated[
    Optional[str],
    typer.Option(help="Branch, tag or commit of --embedder on the Hub.", rich_help_panel=_MODELS, show_default=False),
]
Dim = Annotated[int, typer.Option(help="Matryoshka dimension of page vectors; 0: full width.", rich_help_panel=_MODELS)]
EmbedOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--embed-option",
        metavar="KEY=VALUE",
        help="Any option of the embedder family, see mmrr models.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Scorer = Annotated[str, typer.Option(help="Scorer family, see mmrr models.", rich_help_panel=_MODELS)]
ScorerModel = Annotated[
    Optional[str],
    typer.Option(
        envvar="MMRR_SCORER_MODEL",
        help="Checkpoint of the scorer's family, or LoRA adapter: local path, Hub id (Qwen/Qwen3-VL-Reranker-2B), or "
        "one that comes with mmrr (reader-reranker, small-edje, small-kalm, small-ziprerank).",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
ScorerRevision = Annotated[
    Optional[str],
    typer.Option(
        help="Branch, tag or commit of --scorer-model on the Hub.", rich_help_panel=_MODELS, show_default=False
    ),
]
KeptShare = Annotated[
    Optional[float],
    typer.Option(
        help="Share of visual tokens kept, by the embedder's attention. Default: 0.5 with an embedder, else 1.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Band = Annotated[
    Optional[str],
    typer.Option(
        metavar="B:E",
        help="Layers in which the query sees the page. Default: the paper's for the model's depth (2B: 8:16).",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Codec = Annotated[
    Optional[str],
    typer.Option(
        help="How caches are stored: none, as computed (default); bf16; int8, half of bf16; int4, a quarter.",
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
        help="Any cache option of the scorer family, see mmrr models.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
ExitLayer = Annotated[
    Optional[int],
    typer.Option(
        help="Layers of the scorer that run. Default: up to the band's end. Uses the same caches.",
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
        help="Any scoring option of the scorer family, see mmrr models.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Dense = Annotated[
    bool,
    typer.Option(
        "--dense",
        help="Score with the stock model's full forward, no cache: reference and baseline, slow.",
        rich_help_panel=_MODELS,
    ),
]
Blend = Annotated[
    Optional[float],
    typer.Option(
        metavar="WEIGHT",
        help="Add the reranker's scores, times this, to the first stage's, both standardised per query. "
        "Default: the reranker alone decides. The small models that come with mmrr rank better with 1.",
        rich_help_panel=_MODELS,
        show_default=False,
    ),
]
Prompt = Annotated[
    str,
    typer.Option(
        help="Order of --dense: vision-first, as the caches, or query-first, the published template.",
        rich_help_panel=_MODELS,
    ),
]

Renderer = Annotated[
    str, typer.Option(help="auto, poppler or pdfium; auto is poppler where installed.", rich_help_panel=_PAGES)
]
Dpi = Annotated[int, typer.Option(help="Resolution of PDF pages before the token budget.", rich_help_panel=_PAGES)]
MaxTokens = Annotated[
    int, typer.Option(help="Visual tokens a page at most, 32x32 pixels each.", rich_help_panel=_PAGES)
]
Ocr = Annotated[
    bool,
    typer.Option(
        "--ocr",
        help="Read the text of pages without a text layer from their images; seconds a page. "
        "Needs: pip install 'mmrr[ocr]'.",
        rich_help_panel=_PAGES,
    ),
]
Faiss = Annotated[
    str,
    typer.Option(
        "--faiss-factory",
        help="FAISS factory string, for large collections. One vector a page: PCA256,SQ8,Refine(SQfp16) searches "
        "shortened vectors and rescores what it finds by whole ones. A vector for each token: Flat scores every "
        "page, some 6 ms for 1,000; IVF1024,SQ8 finds candidates first, in a sixteenth of its lists.",
        rich_help_panel=_SEARCH,
    ),
]
FirstStageOption = Annotated[
    Optional[str],
    typer.Option(
        "--first-stage",
        help="dense, bm25 or hybrid. Default: hybrid where there are page vectors, else bm25.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]
ScopeOption = Annotated[
    str,
    typer.Option("--scope", help="corpus: all pages; document: those of the query's doc_id.", rich_help_panel=_SEARCH),
]
Candidates = Annotated[int, typer.Option(help="Pages the first stage hands on.", rich_help_panel=_SEARCH)]
SearchOptions = Annotated[
    Optional[list[str]],
    typer.Option(
        "--search-option",
        metavar="KEY=VALUE",
        help="Any query option of the embedder family, see mmrr models.",
        rich_help_panel=_SEARCH,
        show_default=False,
    ),
]

Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:1, mps; or several, with commas, which share the pages while they are embedded and "
        "precached: the rest runs on the first. auto takes every CUDA device.",
        rich_help_panel=_MACHINE,
    ),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=_MACHINE)]
Workers = Annotated[
    int, typer.Option(help="Processes that render and do OCR; 0: one per core.", rich_help_panel=_MACHINE)
]
MemoryBudget = Annotated[
    str,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        help="What page caches may take while they are scored, e.g. 512MiB; the model comes on top.",
        rich_help_panel=_MACHINE,
    ),
]
Resident = Annotated[
    str,
    typer.Option(
        "--resident",
        metavar="SIZE",
        help="Size of the LRU cache of page caches on the device, e.g. 4GiB; on top of --memory-budget.",
        rich_help_panel=_MACHINE,
    ),
]
From = Annotated[
    Optional[list[str]],
    typer.Option(
        "--from",
        metavar="STAGE/FINGERPRINT",
        help="Use this artifact instead of the newest one of its stage; may be repeated.",
        show_default=False,
    ),
]

WORK = Path("mmrr-work")
RENDER, INDEX, RETRIEVE, MACHINE, PRUNE = Render(), Index(), Retrieve(), Machine(), Prune()
SCORER = "minireranker"
