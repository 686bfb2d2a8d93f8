"""Images as queries in Python: ``Workspace.search`` and ``mmrr.Reranker``. Tolerance: |dz| <= 1e-4."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import mmrr
from mmrr.contracts import VisualQuery
from mmrr.documents.image_input import read_image
from mmrr.scorers.minireranker import Score

TEXT, TOKENS = "the same table", 24


@pytest.fixture(scope="module")
def reranker(tiny_path: Path) -> mmrr.Reranker:
    return mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)


def test_every_form_of_a_query_with_an_image(
    reranker: mmrr.Reranker, page_images: list[Image.Image], tmp_path: Path
) -> None:
    page, asked, other = page_images[:3]
    asked.save(tmp_path / "asked.png")
    visual = read_image(asked, TOKENS)
    forms = [
        asked,
        tmp_path / "asked.png",
        (tmp_path / "asked.png").read_bytes(),
        {"image": str(tmp_path / "asked.png")},
    ]
    forms.append(mmrr.Query("any", "", image=mmrr.query_image(asked)))
    both = {"text": TEXT, "image": asked}
    scores = reranker.predict(
        [*((form, page) for form in forms), (both, page), ({"text": TEXT, "image": other}, page), (TEXT, page)],
        logits=True,
    ).tolist()
    for query, score in [(VisualQuery("", visual), scores[0]), (VisualQuery(TEXT, visual), scores[5])]:
        expected = reranker._scorer.score_uncached(query, read_image(page, TOKENS), None, Score())
        assert score == pytest.approx(expected, abs=1e-4)
    assert scores[:5] == pytest.approx([scores[0]] * 5, abs=1e-6)
    # The same text with another image, and without one, is another query.
    assert len({round(score, 3) for score in [scores[0], *scores[5:]]}) == 4
    ranked = reranker.rank(both, page_images)
    assert {one["corpus_id"]: one["logit"] for one in ranked}[0] == pytest.approx(scores[5], abs=1e-4)


def test_what_is_no_query_is_one_line(reranker: mmrr.Reranker, page_images: list[Image.Image]) -> None:
    for query, problem in [
        ({"text": "x", "video": "a"}, "found a query with the keys video; expected text, image, or both"),
        ({"text": 7}, "found a query with a text of type int"),
        ({"image": "https://example.org/a.png"}, "nothing is fetched"),
        (b"no image", "cannot be read as an image"),
        (Image.new("RGB", (0, 0)), "found an image of 0 x 0 pixels"),
        ({}, "the query is empty; expected a question, some words or an image"),
        (7, "found int as a query"),
    ]:
        with pytest.raises(mmrr.MmrrError) as raised:
            reranker.rank(query, page_images)  # type: ignore[arg-type]
        assert problem in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("family", ["edje", "kalm", "ziprerank", "crossencoder"])
def test_families_that_take_text_alone_say_so(family: str) -> None:
    from mmrr.modeling import families

    families.load("scorers", family)
    with pytest.raises(mmrr.MmrrError, match=f"the scorer {family} takes no image as a query; these do: minireranker$"):
        families.expect_visual("scorers", family)  # type: ignore[arg-type]
