"""Tiles: a page with small print is cut into several images that rank as one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmrr.documents.drawn import RenderOptions
from mmrr.documents.tiles import MOST_TILES, OVERLAP, boxes, draw_tiles
from mmrr.types import best_of_pages, page_of
from tests.console import mmrr, write_documents
from tests.documents.files import source, write
from tests.pdfs import make_pdf

OPTIONS = ("--renderer", "pdfium", "--max-tokens", "64", "--workers", "1")
#: A page of 600 x 800 points with a word in each corner, in print of 10 points: at 64 tokens it is too small.
CORNERS = (
    b"BT /F1 10 Tf 1 0 0 1 20 780 Tm (northwest) Tj 1 0 0 1 520 780 Tm (northeast) Tj "
    b"1 0 0 1 20 10 Tm (southwest) Tj 1 0 0 1 520 10 Tm (southeast) Tj ET"
)
LARGE = b"BT /F1 80 Tf 30 400 Td (large print) Tj ET"


def poster(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write(folder / "poster.pdf", make_pdf([CORNERS, LARGE], size=(600, 800)))
    return folder


def answers(work: Path, question: str, *options: object) -> list[dict[str, Any]]:
    found = json.loads(mmrr("retrieve", question, "--work", work, "--json", *options).stdout)
    return list(found["queries"][0]["results"])


def test_boxes_cover_the_page() -> None:
    for size in ((2861, 4044), (952, 23040), (300, 300), (40_000, 40_000)):
        found = boxes(*size, max_tokens=1280)
        assert 1 <= len(found) <= MOST_TILES * 1.5
        assert min(box[0] for box in found) == min(box[1] for box in found) == 0
        assert (max(box[2] for box in found), max(box[3] for box in found)) == pytest.approx(size)
        area = sum((right - left) * (bottom - top) for left, top, right, bottom in found)
        assert 1 <= area / (size[0] * size[1]) <= (1 + 2 * OVERLAP) ** 2


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_the_text_of_a_tile_is_what_it_shows(tmp_path: Path, rotate: int) -> None:
    path = write(tmp_path / "a.pdf", make_pdf([CORNERS], size=(600, 800), rotate=rotate))
    tiles = draw_tiles(source(path), 1, tmp_path, RenderOptions("pdfium", max_tokens=64))
    assert [tile.number for tile in tiles] == list(range(1001, 1001 + len(tiles)))
    assert len(tiles) > 3
    first = {0: "northwest", 90: "southwest", 180: "southeast", 270: "northeast"}
    assert first[rotate] in tiles[0].text
    words = [word for tile in tiles for word in tile.text.split()]
    assert {"northwest", "northeast", "southwest", "southeast"} <= set(words)
    assert all((tmp_path / tile.file).is_file() for tile in tiles)


@pytest.mark.slow
def test_tiles_rank_as_one_page(tmp_path: Path, tiny_path: Path, tiny_embedder_path: Path) -> None:
    docs, work = poster(tmp_path / "docs"), tmp_path / "w"
    result = mmrr("index", docs, "--work", work, *OPTIONS, "--tiles", "--embedder", tiny_embedder_path)
    assert "2 pages of 1 document (1 ok)" in result.stderr
    assert "1 page has small print and was cut into tiles" in result.stderr
    for options in ((), ("--first-stage", "bm25"), ("--first-stage", "dense"), ("--candidates", "1")):
        found = answers(work, "northeast", *options)
        assert len({row["page_id"] for row in found}) == len(found) <= 2
        assert all("#" not in row["page_id"] for row in found)
    assert answers(work, "northeast", "--first-stage", "bm25")[0]["page_id"] == "poster.pdf/0001"
    assert len(answers(work, "northeast", "--first-stage", "dense")) == 2
    assert mmrr("verify", "--work", work).exit_code == 0
    mmrr("rm", "--work", work)  # unused data only: the tiles are in use
    assert mmrr("verify", "--work", work).exit_code == 0
    mmrr("precache", "--work", work, "--scorer-model", tiny_path)
    reranked = json.loads(mmrr("rerank", "northeast", "--work", work, "--json").stdout)["queries"][0]["results"]
    assert sorted(row["page_id"] for row in reranked) == ["poster.pdf/0001", "poster.pdf/0002"]


@pytest.mark.slow
def test_without_small_print_tiles_change_nothing(tmp_path: Path, tiny_path: Path, tiny_embedder_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", a=[LARGE, LARGE.replace(b"large", b"other")])
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"query_id": "1", "text": "large print"}\n{"query_id": "2", "text": "other"}\n')
    runs = []
    for name, options in (("with", ("--tiles",)), ("without", ())):
        work = tmp_path / name
        mmrr("index", docs, "--work", work, *OPTIONS, *options, "--embedder", tiny_embedder_path)
        mmrr("precache", "--work", work, "--scorer-model", tiny_path)
        paths = [
            Path(mmrr(command, "--queries", queries, "--work", work).stdout.split()[-1])
            for command in ("retrieve", "rerank")
        ]
        runs.append([(path / "run.trec").read_bytes() for path in paths])
    assert runs[0] == runs[1]


def test_a_page_has_the_score_of_its_best_image() -> None:
    assert [page_of(name) for name in ("a#1.pdf/0001#12", "a#1.pdf/0001", "b")] == ["a#1.pdf/0001", "a#1.pdf/0001", "b"]
    assert best_of_pages([("a/0001", 1.0), ("a/0001#1", 3.0), ("a/0001#2", 2.0), ("b/0001", -1.0)]) == {
        "a/0001": 3.0,
        "b/0001": -1.0,
    }
