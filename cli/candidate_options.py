"""The options of ``mmrr rerank`` for candidates from other systems, and for its file of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

OutputFormat = Literal["trec", "rankllm", "mteb", "csv", "json"]
_CANDIDATES, _RESULTS = "Candidates", "Results"

Document = Annotated[
    Optional[list[str]],
    typer.Option(
        "--document",
        help="Search only this document: its id, or the name of its file, also without folder and ending; or a pattern "
        "such as 'reports/*'. Repeatable.",
        rich_help_panel="Search",
        show_default=False,
    ),
]
Pages = Annotated[
    Optional[str],
    typer.Option(
        "--pages",
        metavar="3-20,25",
        help="Search only pages with these numbers, from 1, of each document.",
        rich_help_panel="Search",
        show_default=False,
    ),
]
Where = Annotated[
    Optional[str],
    typer.Option(
        "--where",
        metavar="CONDITIONS",
        help="Search only documents whose metadata fits: 'year>=2020 and kind=report'. Operators: = != < <= > >= and ~ "
        "(contains); and, or, not, parentheses.",
        rich_help_panel="Search",
        show_default=False,
    ),
]
Metadata = Annotated[
    Optional[Path],
    typer.Option(
        "--metadata",
        help="CSV with a header, or JSON Lines: a line for each document, with its name under document and the values "
        "for --where. Default: the metadata that mmrr index stored.",
        rich_help_panel="Search",
        show_default=False,
    ),
]
StoredMetadata = Annotated[
    Optional[Path],
    typer.Option(
        "--metadata",
        help="CSV with a header, or JSON Lines: a line for each document, with its name under document and values such "
        "as a year, for --where. metadata.csv or metadata.jsonl in a folder of documents is read without this.",
        rich_help_panel="Pages",
        show_default=False,
    ),
]
ExternalRun = Annotated[
    Optional[Path],
    typer.Option(
        "--run",
        help="Rerank the candidates in this file instead of searching: a TREC run, JSON Lines of RankLLM, or a "
        "prediction file of mteb.",
        rich_help_panel=_CANDIDATES,
        show_default=False,
    ),
]
IdMap = Annotated[
    Optional[Path],
    typer.Option(
        "--map",
        help="CSV or TSV that says which page an id in --run is: the id, the page id. Default: the ids are page ids.",
        rich_help_panel=_CANDIDATES,
        show_default=False,
    ),
]
Images = Annotated[
    Optional[list[Path]],
    typer.Option(
        "--images",
        metavar="FOLDER|FILE",
        help="Rank these page images and no workspace; needs --scorer-model. Repeatable.",
        rich_help_panel=_CANDIDATES,
        show_default=False,
    ),
]
RankingOutput = Annotated[
    Optional[Path], typer.Option("--output", help="Also write the ranking, with all candidates, to this file.")
]
OutputFormatOption = Annotated[
    Optional[OutputFormat],
    typer.Option(
        "--output-format",
        help="Format of --output: a TREC run, JSON Lines of RankLLM, a prediction file of mteb, CSV or JSON. Default: "
        "by its ending: .jsonl, _predictions.json, .csv, .json, else trec.",
        show_default=False,
    ),
]
Threshold = Annotated[
    Optional[float],
    typer.Option(
        "--threshold",
        help="Leave out pages below this score, from 0 to 1: the sigmoid of the logit, or with --calibration the "
        "probability.",
        rich_help_panel=_RESULTS,
        show_default=False,
    ),
]
Calibration = Annotated[
    Optional[Path],
    typer.Option(
        "--calibration",
        help="A file of mmrr tune --calibrate: --threshold is of its probabilities, and JSON and CSV show them.",
        rich_help_panel=_RESULTS,
        show_default=False,
    ),
]
OnePerDocument = Annotated[
    bool,
    typer.Option("--one-per-document", help="Of each document, the best page only.", rich_help_panel=_RESULTS),
]
FoldDuplicates = Annotated[
    bool,
    typer.Option(
        "--fold-duplicates",
        help="Of pages with the same image, the best one only.",
        rich_help_panel=_RESULTS,
    ),
]
