"""``mteb.evaluate`` with the encoder, then mteb's own second stage with the cross-encoder; offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmrr
from mmrr.documents.image_input import read_image
from mmrr.modeling.checkpoints import resolve
from mmrr.search.late_interaction import max_sim
from mmrr.workspace.files import HashCache
from tests.integrations.conftest import QUERY
from tests.tiny import late

pytestmark = pytest.mark.framework("mteb")
QUESTIONS = [QUERY, "How moist is the soil?"]
TOKENS = 64


def make_task(pages: list[Image.Image]) -> Any:
    """A task of the published shape: text queries, a corpus of images, judgements."""
    from datasets import Dataset
    from mteb import TaskMetadata
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    class Pages(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Pages",
            description="pages",
            type="DocumentUnderstanding",
            category="t2i",
            modalities=["text", "image"],
            dataset={"path": "none", "revision": "none"},
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_5",
        )

        def load_data(self, **ignored: Any) -> None:
            queries = Dataset.from_dict({"id": [f"q{i}" for i in range(len(QUESTIONS))], "text": QUESTIONS})
            corpus = Dataset.from_dict({"id": [f"d{i}" for i in range(len(pages))], "image": pages})
            relevant = {"q0": {"d0": 1}, "q1": {"d1": 1}}
            split = {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Pages()


def predictions(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "Pages_predictions.json").read_text())["default"]["test"]
    return found


@pytest.mark.slow
def test_two_stages_give_the_scores_of_mmrr(
    page_images: list[Image.Image], tiny_path: Path, tiny_embedder_path: Path, tmp_path: Path
):
    import mteb

    from mmrr.embedders import colqwen3
    from mmrr.integrations.mteb import PageCrossEncoder, PageEncoder

    model = late(tiny_embedder_path, tmp_path / "late", words=True)
    encoder = PageEncoder(str(model), device="cpu", dtype="float32", max_tokens=TOKENS)
    result = mteb.evaluate(encoder, make_task(page_images), cache=None, prediction_folder=tmp_path)
    assert 0 <= result[0].get_score() <= 1
    assert encoder.mteb_model_meta.name == "mmrr/late"
    first = predictions(tmp_path)

    checkpoint = resolve(str(model), None, HashCache(tmp_path / "hashes.json"))
    embedder = colqwen3.load(checkpoint, colqwen3.Prepare(), torch.device("cpu"), torch.float32)
    pages = [embedder.embed_pages([read_image(image, TOKENS)])[0].vectors.float().numpy() for image in page_images]
    queries = [one.numpy() for one in embedder.embed_queries(QUESTIONS, colqwen3.Search())]
    temperature = embedder.temperature(colqwen3.Search())
    expected = max_sim(queries, np.concatenate(pages), np.array([len(one) for one in pages]), temperature)
    for i, row in enumerate(expected):
        assert [first[f"q{i}"][f"d{j}"] for j in range(len(page_images))] == pytest.approx(list(row), abs=1e-5)

    task = make_task(page_images).convert_to_reranking(tmp_path, top_k=3)
    (tmp_path / "second").mkdir()
    cross_encoder = PageCrossEncoder(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    result = mteb.evaluate(cross_encoder, task, cache=None, prediction_folder=tmp_path / "second")
    assert 0 <= result[0].get_score() <= 1
    reranker = mmrr.Reranker(str(tiny_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    for i, question in enumerate(QUESTIONS):
        before = sorted(first[f"q{i}"], key=lambda one: first[f"q{i}"][one], reverse=True)[:3]
        scores = predictions(tmp_path / "second")[f"q{i}"]
        assert set(scores) == set(before)
        logits = reranker.predict([(question, page_images[int(one[1:])]) for one in before], logits=True)
        assert [scores[one] for one in before] == pytest.approx(list(logits), abs=1e-5)


def test_a_page_without_an_image_and_a_reranker_as_encoder_are_refused(tiny_path: Path):
    from mmrr.integrations.mteb import PageCrossEncoder, PageEncoder

    cross_encoder = PageCrossEncoder(str(tiny_path), device="cpu")
    with pytest.raises(mmrr.MmrrError, match="a document has no image; found the columns text; expected 'image'"):
        cross_encoder.predict([{"text": [QUERY]}], [{"text": ["a page"]}])
    assert cross_encoder.predict([], []).shape == (0,)
    with pytest.raises(mmrr.MmrrError, match="reader-reranker"):
        PageEncoder("reader-reranker")


def test_pairs_have_the_scores_of_a_search_without_soft_idf(tiny_embedder_path: Path, page_images: list[Image.Image]):
    from mteb.types import PromptType

    from mmrr.integrations.mteb import PageEncoder

    encoder = PageEncoder(str(tiny_embedder_path), device="cpu", dtype="float32", max_tokens=TOKENS)
    pages = encoder.encode([{"image": page_images[:2]}], prompt_type=PromptType.document)
    queries = encoder.encode([{"text": QUESTIONS}], prompt_type=PromptType.query)
    together, pairs = encoder.similarity(queries, pages), encoder.similarity_pairwise(queries, pages)
    assert pairs.tolist() == pytest.approx(together.diagonal().tolist(), abs=1e-5)


@pytest.mark.slow
def test_the_example(
    example: Callable[..., list[str]], tiny_path: Path, tiny_embedder_path: Path, images: list[Path], tmp_path: Path
):
    rows = [{"query": question, "page": str(image)} for question, image in zip(QUESTIONS, images, strict=False)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = example("mteb_pages.py", tiny_embedder_path, tiny_path, "questions.jsonl")
    assert [line.rpartition(" ")[0].strip() for line in shown] == ["first stage", "reranked"]
    assert all(0 <= float(line.split()[-1]) <= 1 for line in shown)
