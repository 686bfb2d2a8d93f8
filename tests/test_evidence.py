"""Evidence: where the score of a page comes from, from the stored vectors and caches; and its picture."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmrr
from benchmarks.evidence import Models, draw, measure
from mmrr import heat_map
from mmrr.backbones import qwen3_vl
from mmrr.config import Machine, Render
from mmrr.embedders import colqwen3
from mmrr.evidence import NoEvidenceError, WrongChoiceError, attention_heat, product_heat
from mmrr.training.synthetic.canvas import DrawnPage
from mmrr.training.synthetic.sources import read_documents
from mmrr.types import Embedding, QueryImage
from mmrr.workspace import manifests, tensors
from tests.console import SOIL, THESIS, write_documents
from tests.texts import write_texts
from tests.tiny import late

QUERY = "When is the thesis due?"
PAGE = "thesis.pdf/0001"


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_path: Path, tiny_embedder_path: Path
) -> Iterator[mmrr.Workspace]:
    """Five pages with pooled vectors of a late-interaction embedder, and caches of half of their tokens."""
    root = tmp_path_factory.mktemp("evidence")
    write_documents(root / "documents", thesis=THESIS, soil=SOIL)
    embedder = late(tiny_embedder_path, root / "late", words=True)
    with mmrr.Workspace(root / "work", create=True, machine=Machine("cpu", "float32", workers=1)) as made:
        render = Render("pdfium", max_tokens=64)
        made.index(root / "documents", embedder=str(embedder), embed_options={"pool": 4}, render=render)
        made.precache(str(tiny_path))
        yield made


@pytest.fixture
def no_page_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen3_vl.Backbone, "vision", lambda *_: pytest.fail("a page was read again"))


def stored(workspace: mmrr.Workspace) -> Embedding:
    context = workspace._context
    embedded, collection = context.current("embed"), context.collection(context.current("index"))
    shard = manifests.content(embedded, "embed")["shards"][collection.shards[collection.row_of[PAGE]]]
    return tensors.read_embeddings(context.workspace, shard)[1]


@pytest.mark.usefixtures("no_page_is_read")
def test_the_embedder_points_at_the_tokens_of_the_best_vectors(workspace: mmrr.Workspace) -> None:
    found = workspace.explain(QUERY, PAGE, word="Thesis", source="embedder")
    assert (found.source, found.sources, found.word) == ("embedder", ("reranker", "embedder"), ("thesis", 3))
    assert [word.text for word in found.words] == ["When", "is", "the", "thesis", "due"]
    assert (found.heat.dtype, found.heat.shape) == (np.float32, found.kept.shape)
    embedder = next(one for one in workspace._context.loaded._known.values() if isinstance(one, colqwen3.Embedder))
    (query,) = embedder.embed_queries([QUERY], colqwen3.Search())
    page = stored(workspace)
    assert page.owners is not None
    assert len(page.vectors) < found.heat.size == len(page.owners), "tokens were pooled"
    products = (query[3] @ page.vectors.float().T)[page.owners.long()].numpy()
    order = np.argsort(-products, kind="stable")
    assert np.array_equal(found.heat.ravel()[order], np.sort(found.heat.ravel())[::-1])
    assert found.heat.ravel()[order[0]] == 1
    whole = workspace.explain(QUERY, PAGE, source="embedder")
    assert whole.word is None
    assert whole.heat.max() == 1
    assert not np.array_equal(whole.heat, found.heat)


@pytest.mark.usefixtures("no_page_is_read")
def test_the_reranker_points_at_kept_tokens_alone(workspace: mmrr.Workspace) -> None:
    found = workspace.explain(QUERY, PAGE)
    assert found.source == "reranker"
    assert found.kept.sum() == math.ceil(found.kept.size / 2)
    assert (found.heat[~found.kept] == 0).all()
    assert (found.heat[found.kept] > 0).all()
    assert np.array_equal(workspace.explain(QUERY, PAGE, layer=0).heat, found.heat), "the band has one layer"
    with pytest.raises(WrongChoiceError, match="layer 1: expected 0 to 0"):
        workspace.explain(QUERY, PAGE, layer=1)


def test_vectors_of_an_earlier_mmrr_are_mapped_by_reading_the_page(
    workspace: mmrr.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = workspace.explain(QUERY, PAGE, source="embedder").heat
    old = dataclasses.replace(stored(workspace), owners=None)
    monkeypatch.setattr("mmrr.evidence.read_embeddings", lambda *_: {1: old})
    assert np.allclose(workspace.explain(QUERY, PAGE, source="embedder").heat, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"word": 5}, "no word 5; expected one of: 0 When, 1 is, 2 the, 3 thesis, 4 due"),
        ({"word": "soil"}, "no word 'soil'; expected one of"),
        ({"source": "saliency"}, "source 'saliency'; expected one of: reranker, embedder"),
        ({"source": "embedder", "layer": 0}, "leave out the layer"),
    ],
)
def test_a_wrong_choice_is_one_line(workspace: mmrr.Workspace, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(WrongChoiceError, match=expected):
        workspace.explain(QUERY, PAGE, **options)


def test_the_code_of_the_guide_runs(workspace: mmrr.Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "explain.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code.replace('open("work")', f"open({str(workspace.path)!r})"), "docs/explain.md", "exec"), names)
    assert (tmp_path / "why.png").is_file()
    assert names["why"].word == ("thesis", 3)
    query = mmrr.Query("q", "", image=QueryImage("0" * 64, b""))
    with pytest.raises(mmrr.MmrrError, match="found a query with an image; expected text"):
        workspace.explain(query, PAGE)


def test_words_alone_have_no_evidence(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", soil=SOIL)
    with mmrr.Workspace(tmp_path / "work", create=True, machine=Machine("cpu", "float32", workers=1)) as made:
        made.index(tmp_path / "documents", render=Render("pdfium", max_tokens=64))
        with pytest.raises(NoEvidenceError, match=r"late-interaction embedder \(colqwen3\), or .* by minireranker"):
            made.explain(QUERY, "soil.pdf/0001")
        with pytest.raises(mmrr.MmrrError, match="query is empty"):
            made.explain(" ", "soil.pdf/0001")


def test_heat_of_products_and_of_attention() -> None:
    query = np.array([[1, 0], [0, 2]], dtype=np.float32)
    page = np.array([[1, 0], [0, 1], [0.9, 0.1]], dtype=np.float32)
    first = np.exp(np.array([0, -1, -0.1]) / 0.1)
    second = np.exp(np.array([-2, 0, -1.8]) / 0.1)
    weights = np.array([0.5, 0.25], dtype=np.float32)
    assert product_heat(query[:1], page, weights[:1], 0.1) == pytest.approx(first, rel=1e-3)
    both = 0.5 * 1 * first + 0.25 * 2 * second
    assert product_heat(query, page, weights, 0.1) == pytest.approx(both / both.max(), rel=1e-3)
    alone = product_heat(query, page, np.zeros(2, dtype=np.float32), 0.1)
    assert alone == pytest.approx((first + second) / (first + second).max(), rel=1e-3)
    assert product_heat(query[:1], page, weights[:1], 0.0).argmax() == 0
    attention = np.array([[0.1, 0.3], [0.4, 0.2]], dtype=np.float32)
    assert attention_heat(attention) == pytest.approx([1, 1])
    assert attention_heat(attention, 0) == pytest.approx([1 / 3, 1])


def test_the_picture_shows_heat_dropped_tokens_and_any_query(workspace: mmrr.Workspace) -> None:
    kept = np.array([[True, False], [True, True]])
    heat = np.array([[1, 0], [0, 0]], dtype=np.float32)
    page = np.asarray(heat_map.overlay(Image.new("RGB", (64, 64), "white"), heat, kept)).astype(int)
    assert (page[:32, :32] != 255).any(axis=-1).all(), "heat is everywhere in its token"
    assert (page[32:] == 255).all()
    assert 0 < (page[:32, 32:] < 200).any(axis=-1).mean() < 0.5, "lines across the dropped token"
    query = "<b>q</b> \x1b[31m\u202e\x00 " + "unbreakable" * 200 + " 日本語 due " * 50
    found = workspace.explain(query, PAGE)
    picture = Image.open(io.BytesIO(found._repr_png_()))
    short = workspace.explain("due", PAGE).image()
    assert picture.width == short.width == 640
    assert picture.height > short.height > found.heat.shape[0]
    assert "\x1b" not in "".join(heat_map._wrapped(heat_map._line(query), heat_map._font("", 13), 600))


@pytest.mark.slow
def test_the_embedder_finds_the_words_of_drawn_pages(tmp_path: Path) -> None:
    """On 100 whole pages 61 % of a word's heat is on the word, on 0.6 % of the page; see ``benchmarks.evidence``."""
    models, rng = Models("reader-embedder", "reader-reranker"), random.Random(3)
    pages = [
        cropped(page) for page in draw(read_documents(write_texts(tmp_path / "texts.jsonl")), 6, tmp_path / "pool")
    ]
    shares = measure(models, [case for page in pages if (case := models.read(page, rng)) is not None])
    chance, saliency, heat = (np.mean(shares[name][2]) for name in ("chance (area)", "saliency map", "embedder"))
    assert len(shares["embedder"][2]) >= 6
    assert heat > 0.25
    assert heat > 5 * chance
    assert heat > 5 * saliency


def cropped(page: DrawnPage) -> DrawnPage:
    """The upper left part of a page, which takes less time."""
    size = (512, 448)
    inside = tuple(
        word for word in page.words if (word.centres < np.array(size) - 16).all() and (word.centres > 0).all()
    )
    return DrawnPage(page.image.crop((0, 0, *size)), inside)
