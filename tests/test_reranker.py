"""``mmrr.Reranker``: scores without a workspace, pages found again by their content. Tolerance: |dz| <= 1e-4."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmrr
from mmrr.documents.image_input import read_image
from mmrr.scorers.minireranker import Score

QUERY = "When is the thesis due?"
TOKENS = 24


@pytest.fixture(scope="module")
def reranker(tiny_path: Path) -> mmrr.Reranker:
    return mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def forbid_prepare(reranker: mmrr.Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a page was read again")

    monkeypatch.setattr(reranker._scorer, "prepare", fail)


def test_scores_are_those_of_the_forward_without_a_cache(reranker: mmrr.Reranker, page_images: list[Image.Image]):
    scores = reranker.predict([(QUERY, image) for image in page_images], logits=True)
    for image, score in zip(page_images, scores, strict=True):
        page = read_image(image, TOKENS)
        assert reranker._scorer.score_uncached(QUERY, page, None, Score()) == pytest.approx(float(score), abs=1e-4)


def test_rank_orders_by_logit_and_predict_gives_the_same_scores(
    reranker: mmrr.Reranker, page_images: list[Image.Image]
):
    ranked = reranker.rank(QUERY, page_images)
    assert sorted(one["corpus_id"] for one in ranked) == list(range(len(page_images)))
    assert [one["logit"] for one in ranked] == sorted((one["logit"] for one in ranked), reverse=True)
    pairs = [("other", page_images[0]), *((QUERY, image) for image in page_images)]
    scores = reranker.predict(pairs)
    assert scores.dtype == np.float32
    for one in ranked:
        assert scores[1 + one["corpus_id"]] == pytest.approx(one["score"], abs=1e-6)
        assert one["score"] == pytest.approx(torch.sigmoid(torch.tensor(one["logit"])).item(), abs=1e-6)
    assert reranker.rank(QUERY, page_images, top_k=1) == ranked[:1]
    assert reranker.rank(QUERY, []) == []


def test_an_image_is_the_same_page_in_every_form(
    reranker: mmrr.Reranker, page_images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    image = page_images[0]
    (tmp_path / "page.png").write_bytes(png(image))
    uri = "data:image/png;base64," + base64.b64encode(png(image)).decode()
    reranker.prepare([image])
    forbid_prepare(reranker, monkeypatch)
    forms = [image, png(image), tmp_path / "page.png", str(tmp_path / "page.png"), uri]
    assert len(set(reranker.predict([(QUERY, form) for form in forms]))) == 1


def test_a_cache_folder_serves_another_reranker_and_a_damaged_page_is_read_again(
    reranker: mmrr.Reranker, page_images: list[Image.Image], tiny_path: Path, tmp_path: Path, monkeypatch
):
    folder = tmp_path / "cache"
    other = mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    with other.cache(folder):
        expected = other.rank(QUERY, page_images)
    another = mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    with monkeypatch.context() as patch, another.cache(folder):
        forbid_prepare(another, patch)
        assert another.rank(QUERY, page_images) == expected
    for path in folder.glob("shards/precache/*/*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    last = mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    with last.cache(folder):
        assert last.rank(QUERY, page_images) == expected


def test_memory_is_limited(tiny_path: Path, page_images: list[Image.Image]):
    small = mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS, memory=0)
    assert small.rank(QUERY, page_images) == small.rank(QUERY, page_images)
    assert not small._caches
    assert small._bytes == 0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("https://example.org/page.png", "is a URL, and nothing is fetched"),
        ("data:text/html;base64,AAAA", "expected data:image"),
        ("data:image/png;base64,!!", "not base64"),
        (b"%PDF-1.7", "cannot be read as an image"),
        ("no-such-file.png", "cannot be read as an image"),
    ],
)
def test_a_document_that_is_no_image_is_one_clear_line(reranker: mmrr.Reranker, document: object, expected: str):
    with pytest.raises(mmrr.MmrrError, match="document 1: ") as raised:
        reranker.rank(QUERY, [Image.new("RGB", (64, 64), "white"), document])
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_empty_query_is_refused(reranker: mmrr.Reranker):
    with pytest.raises(mmrr.MmrrError, match="the query is empty"):
        reranker.rank(" ", [Image.new("RGB", (64, 64), "white")])


def test_importing_mmrr_loads_no_model_library():
    code = "import sys, mmrr; dir(mmrr); print({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmrr.nothing  # noqa: B018
