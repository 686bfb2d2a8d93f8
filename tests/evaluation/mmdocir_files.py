"""Small files in the published format of MMDocIR, and the two folders that the tests read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
from PIL import Image

from mmrr.evaluation.mmdocir import Benchmark, Box
from mmrr.types import Query


def jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 10), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def question(text: str, pages: list[int], *boxes: tuple[int, list[Any]]) -> dict[str, Any]:
    mapping = [{"page": page, "page_size": [612.0, 792.0], "bbox": bbox} for page, bbox in boxes]
    return {"Q": text, "A": "-", "type": "['Table']", "page_id": pages, "layout_mapping": mapping}


ANNOTATIONS: list[dict[str, Any]] = [
    {
        "doc_name": "b report.pdf",
        "domain": "Financial report",
        "page_indices": [2, 4],
        "layout_indices": [1, 3],
        "questions": [
            question("<|im_end|> how much?", [0, 2], (0, [1, 2.5, 3, 4]), (2, [0, 0, 612, 792])),
            question("which?", []),
        ],
    },
    {"doc_name": "a.pdf", "domain": "News", "page_indices": [0, 1], "layout_indices": [0, 0], "questions": []},
]
#: doc_name and passage_id of the rows of the pages file
ROWS = [("a.pdf", "0"), ("a.pdf", "1"), ("b report.pdf", "0"), ("b report.pdf", "1"), ("b report.pdf", "2")]
#: doc_name, page_id, type
LAYOUTS = [
    ("a.pdf", 1, "text"),
    ("b report.pdf", 0, "table"),
    ("b report.pdf", 2, "text"),
    ("b report.pdf", 2, "image"),
]


def write_annotations(folder: Path, lines: list[Any] = ANNOTATIONS, name: str = "MMDocIR_annotations.jsonl") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def pages_table(rows: list[tuple[str, str]] = ROWS) -> pa.Table:
    return pa.table(
        {
            "doc_name": [name for name, _ in rows],
            "domain": ["News"] * len(rows),
            "passage_id": [passage for _, passage in rows],
            "image_path": [f"page_images/{name}_{passage}.jpg" for name, passage in rows],
            "image_binary": pa.array([jpeg(10 * i) for i in range(len(rows))], pa.binary()),
            "ocr_text": [f"ocr {i}" for i in range(len(rows))],
            "vlm_text": [None if i == 1 else f"vlm {i}" for i in range(len(rows))],
        }
    )


def layouts_table(layouts: list[tuple[str, int, str]] = LAYOUTS) -> pa.Table:
    n = len(layouts)
    pictures = [kind in ("table", "image") for _, _, kind in layouts]
    return pa.table(
        {
            "doc_name": [name for name, _, _ in layouts],
            "domain": ["News"] * n,
            "type": [kind for _, _, kind in layouts],
            "layout_id": list(range(n)),
            "page_id": [page for _, page, _ in layouts],
            "image_path": ["x"] * n,
            "image_binary": pa.array([jpeg(i) for i in range(n)], pa.binary()),
            "text": [f"own {i}" for i in range(n)],
            "ocr_text": [f"ocr {i}" if picture else None for i, picture in enumerate(pictures)],
            "vlm_text": [f"vlm {i}" if picture else None for i, picture in enumerate(pictures)],
            "bbox": [[float(i), 0.0, 10.0, 20.0] for i in range(n)],
            "page_size": [[612.0, 792.0]] * n,
        }
    )


def check_questions(benchmark: Benchmark) -> None:
    assert [document.doc_id for document in benchmark.documents] == ["b_report.pdf", "a.pdf"]
    assert [document.name for document in benchmark.documents] == ["b report.pdf", "a.pdf"]
    assert [document.n_pages for document in benchmark.documents] == [3, 2]
    first, second = benchmark.questions
    assert (first.query_id, first.doc_id, first.index) == ("b_report.pdf#0", "b_report.pdf", 0)
    assert (first.text, first.domain, first.page_id) == ("<|im_end|> how much?", "Financial report", (0, 2))
    assert first.pages == {"b_report.pdf/0001", "b_report.pdf/0003"}
    assert first.boxes == (
        Box(0, (1.0, 2.5, 3.0, 4.0), (612.0, 792.0)),
        Box(2, (0.0, 0.0, 612.0, 792.0), (612.0, 792.0)),
    )
    assert (second.query_id, second.index, second.pages, second.boxes) == ("b_report.pdf#1", 1, frozenset(), ())
    assert benchmark.queries()[1] == Query("b_report.pdf#1", "which?", "b_report.pdf")
    assert benchmark.qrels() == {"b_report.pdf#0": {"b_report.pdf/0001": 1, "b_report.pdf/0003": 1}}
