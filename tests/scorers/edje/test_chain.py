"""EDJE from documents to a ranking, on the command line."""

from __future__ import annotations

import json
import shutil

import torch
from PIL import Image
from safetensors.torch import load_file

from mmrr.documents.discovery import find_sources
from mmrr.documents.rendering import RenderOptions, render_pages
from mmrr.scorers import edje
from mmrr.scorers.edje import Prepare
from tests.console import (
    FP32,
    INDEX,
    SOIL,
    THESIS,
    artifact,
    manifest,
    mmrr,
    refused,
    run_lines,
    write_documents,
    write_queries,
)
from tests.scorers.edje.reference import TOLERANCE, pieces, stock_tokens


def coloured(text, colour):
    """The content of a page that a model with random weights distinguishes from pages of other colours."""
    return f"{colour} rg 0 0 612 700 re f 0 g BT /F1 18 Tf 40 740 Td ({text}) Tj ET".encode()


def drawn(document, number, out):
    """The image of a page, as ``mmrr index`` renders it with the options INDEX."""
    (page,) = render_pages(find_sources([document])[0], number, number, out, RenderOptions("pdfium", max_tokens=64))
    return Image.open(out / page.file)


def test_from_documents_to_a_ranking(tmp_path, edje_path, vision_path, found, original):
    colours = ["1 0 0", "0 0 1", "0 0 0", "0 1 0", "1 1 0"]
    contents = [coloured(text, colour) for text, colour in zip([*THESIS, *SOIL], colours, strict=True)]
    docs = write_documents(tmp_path / "docs", thesis=contents[:2], soil=contents[2:])
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer", "edje", "--scorer-model", edje_path, "-o", f"vision={vision_path}", *FP32)
    result = mmrr("precache", *work, *model)
    cached = artifact(result)
    made = manifest(cached)
    assert made["config"]["options"]["vision_revision"].startswith("sha256:")
    pages = made["content"]["pages"]
    records = [tmp_path / "w" / "shards" / "precache" / key for key in made["content"]["shards"].values()]
    tensors = [tensor for folder in records for tensor in load_file(folder / "states.safetensors").values()]
    planned = edje.cache_bytes(Prepare(**made["config"]["options"]), found.config(), 0, 4)
    assert (len(tensors), {tensor.nbytes for tensor in tensors}) == (pages, {planned})
    queries = write_queries(tmp_path / "queries.jsonl", ("q1", "thesis due rainfall"))
    ranked = run_lines(artifact(mmrr("rerank", "--queries", queries, *work)) / "run.trec")["q1"]
    assert [page_id for page_id, _ in ranked] == [page_id for page_id, _ in sorted(ranked, key=lambda hit: -hit[1])]
    images = [drawn(docs / name, int(number), tmp_path) for name, number in (hit[0].split("/") for hit in ranked)]
    z = original.vision_projection(stock_tokens(vision_path, images))
    expected = original.score([pieces("thesis due rainfall")] * len(ranked), z)
    assert len(ranked) == 3
    assert expected.std() > 1000 * TOLERANCE
    assert (torch.tensor([score for _, score in ranked]) - expected).abs().max() <= 0.02 * expected.std()  # float16
    told = json.loads(mmrr("verify", *work, "--rescore", "2", "--json").stdout)
    assert (told["problems"], told["rescored"]["pairs"]) == ([], 2)
    assert 0 < told["rescored"]["largest_difference"] < 0.01
    tiled = artifact(mmrr("precache", *work, *model, "-o", "tiles=2"))
    assert tiled != cached
    shutil.move(vision_path, tmp_path / "aside")
    try:  # scoring does not need the vision encoder
        mmrr("rerank", "cover of a thesis", *work)
    finally:
        shutil.move(tmp_path / "aside", vision_path)
    assert "edje caches whole pages: leave out --keep" in refused("precache", *work, *model, "--keep", "0.5")
    assert "has no dense forward" in refused("rerank", "a thesis", *work, "--dense")


def test_models_lists_it():
    rows = json.loads(mmrr("models", "--json").stdout)["families"]
    (row,) = [row for row in rows if row["family"] == "edje"]
    assert row["checkpoints"] == ["small-edje", "shahafw/edje-vl-image-retrieval-reranker"]
