"""Adapters of a model from the Hub: they name it by id and commit, load on another machine, and merge into it.

Tolerance between a merged checkpoint and its adapter: none in the number format of the base, |d z| <= 1e-5 in float32.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import recorded, resolve
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from mmrr.training import config as configs
from mmrr.training import finetune
from mmrr.training.families import ziprerank
from mmrr.training.merge import merge
from mmrr.workspace.files import HashCache
from tests import published
from tests.cli.chain import QUESTION
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents
from tests.tiny import write_checkpoint
from tests.training.shared import QUERIES, reranking, write_config

NAME = "Qwen/Qwen3-VL-Reranker-2B"
FINETUNED = {"device": "cpu", "dtype": "float32", "workers": 0, "steps": 1, "accumulate": 1, "warmup": 0, "lr": 1e-2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A published folder with a head of its own, as the larger models have."""
    root = tmp_path_factory.mktemp("base")
    return published.write(write_checkpoint(root / "tiny", layers=3, seed=3, tie=False), root / "published")


def use_cache(monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


@pytest.fixture
def cache(tmp_path, monkeypatch, base):
    """A cache of the Hub that holds the base."""
    published.put_in_hub(tmp_path / "hub", NAME, base)
    use_cache(monkeypatch, tmp_path / "hub")
    return tmp_path / "hub"


def list_config(folder, model, **values):
    settings = {"scorer": "ziprerank", "model": str(model), "lists": "lists.jsonl", "max_side": 128, "size": 1}
    return configs.read(write_config(folder / "train.toml", **settings, **FINETUNED, **values), "reranker")


def train(task, pairs, lists, run):
    if task == "ziprerank":
        return list(ziprerank.train(list_config(lists, NAME, stage=1), run))
    if task == "embedder":
        settings = write_config(pairs / "train.toml", model=NAME, pairs="pairs.jsonl", **FINETUNED)
        return list(finetune.train_embedder(configs.read(settings, "embedder"), run))
    return list(finetune.train_reranker(reranking(pairs, NAME, steps=1, pages=1), run))


def find(path, tmp_path):
    return resolve(str(path), None, HashCache(tmp_path / "hashes.json"))


@pytest.mark.parametrize("task", ["reranker", "embedder", "ziprerank"])
def test_an_adapter_names_the_hub_id_and_the_commit(
    task, cache, pairs_folder, lists_folder, tmp_path, monkeypatch, page_images
):
    """It is found when the cache has moved. Seven parameters: all but the first are fixtures."""
    train(task, pairs_folder, lists_folder, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    saved = json.loads((adapter / "adapter_config.json").read_text())
    commit = (cache / "models--Qwen--Qwen3-VL-Reranker-2B" / "refs" / "main").read_text()
    assert (saved["base_model_name_or_path"], saved["revision"]) == (NAME, commit)
    found = find(adapter, tmp_path)
    cache.rename(tmp_path / "moved")
    use_cache(monkeypatch, tmp_path / "moved")
    moved = find(adapter, tmp_path)
    assert moved.revision == found.revision == f"{found.revision.partition('+')[0]}+{commit}"
    assert tmp_path / "moved" in moved.path.parents
    assert recorded(moved.identity("float32"), HashCache(tmp_path / "hashes.json")) == moved
    if task == "reranker":
        Scorer(moved, Prepare(band="0:2"), CPU, torch.float32).prepare(page_images[:1], [None])


def test_an_adapter_that_names_a_snapshot_is_found_or_says_what_to_download(
    cache, pairs_folder, lists_folder, tmp_path, monkeypatch
):
    """Earlier versions wrote the path of the snapshot on the machine of the training, and the commit."""
    train("reranker", pairs_folder, lists_folder, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    path = adapter / "adapter_config.json"
    saved = json.loads(path.read_text())
    named = find(adapter, tmp_path)
    snapshot = f"models--Qwen--Qwen3-VL-Reranker-2B/snapshots/{saved['revision']}"
    for root, revision in ((cache, saved["revision"]), ("/home/other/.cache/huggingface/hub", None)):
        path.write_text(json.dumps(saved | {"base_model_name_or_path": f"{root}/{snapshot}", "revision": revision}))
        found = find(adapter, tmp_path)
        assert found.path == named.path
        assert found.revision.partition("+")[2] == saved["revision"]
    use_cache(monkeypatch, tmp_path / "empty")
    with pytest.raises(MmrrError, match=rf"hf download {NAME} --revision {saved['revision']}"):
        find(adapter, tmp_path)


# Merging


def scores(path, tmp_path, images, dtype):
    scorer = Scorer(find(path, tmp_path), Prepare(band="0:3"), CPU, dtype)
    states = scorer.prepare(images, [None] * len(images))
    return scorer.score(scorer.encode_query(QUERIES[0]), states, scorer.shared_state(), Score())


def test_a_merged_checkpoint_scores_as_its_adapter(cache, base, pairs_folder, lists_folder, tmp_path, page_images):
    """It has the base's files and shards; the weights that the adapter does not change are equal to the last bit."""
    half = published.write(
        base.parent / "tiny", tmp_path / "half", edit=lambda w: {n: t.bfloat16() for n, t in w.items()}
    )
    train("reranker", pairs_folder, lists_folder, tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    shown = json.loads(mmrr("merge", adapter, "--output", tmp_path / "merged", "--json").stdout)
    saved = load_file(adapter / "adapter_model.safetensors")
    adapted = {n.removeprefix("base_model.model.").replace(".lora_A", "") for n in saved if ".lora_A." in n}
    assert (shown["base"], shown["dtype"], shown["tensors_changed"]) == (NAME, "float32", len(adapted))
    expected = {path.name for path in base.iterdir() if path.suffix in (".json", ".safetensors")} | {"merged.json"}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == expected
    for file in sorted(base.glob("*.safetensors")):
        before, after = load_file(file), load_file(tmp_path / "merged" / file.name)
        assert before.keys() == after.keys()
        for name in before:
            assert torch.equal(before[name], after[name]) != (name in adapted), name
    float32 = [scores(path, tmp_path, page_images, torch.float32) for path in (adapter, tmp_path / "merged", base)]
    assert (float32[0] - float32[1]).abs().max() <= 1e-5
    assert (float32[0] - float32[2]).abs().max() > 1e-3
    assert "holds files already" in refused("merge", adapter, "--output", tmp_path / "merged")
    assert "is no LoRA adapter" in refused("merge", tmp_path / "merged", "--output", tmp_path / "again")

    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": str(half), "revision": None}
    path.write_text(json.dumps(settings))
    assert merge(str(adapter), tmp_path / "merged-half").dtype == "bfloat16"
    same = [scores(path, tmp_path, page_images, torch.bfloat16) for path in (adapter, tmp_path / "merged-half")]
    assert torch.equal(*same)
    assert json.loads((tmp_path / "merged-half" / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"


def test_a_second_stage_starts_from_the_merged_first(cache, lists_folder, tmp_path):
    """ZipRerank: stage 1 from the Hub id, merge, stage 2, page caches, ranking; each by its command."""
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    mmrr("index", docs, "--work", tmp_path / "w", *INDEX)
    list_config(lists_folder, NAME, stage=1)
    mmrr("train", "reranker", "--config", lists_folder / "train.toml", "--run-dir", tmp_path / "one")
    again = refused(
        "train",
        "reranker",
        *("--config", stage_two(lists_folder, tmp_path / "one" / "adapter"), "--run-dir", tmp_path / "two"),
    )
    command = re.search(r"mmrr (merge .* --output) DIR", again)[1].split()
    mmrr(*command, tmp_path / "merged")
    settings = stage_two(lists_folder, tmp_path / "merged")
    mmrr("train", "reranker", "--config", settings, "--run-dir", tmp_path / "three")
    saved = json.loads((tmp_path / "three" / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(tmp_path / "merged")
    model = ("--scorer", "ziprerank", "--scorer-model", tmp_path / "three" / "adapter")
    mmrr("precache", "--work", tmp_path / "w", *model, "-o", "max_side=128", *FP32)
    ranked = json.loads(mmrr("rerank", QUESTION, "--work", tmp_path / "w", "--json", *FP32).stdout)
    assert ranked


def stage_two(folder, model):
    list_config(folder, model, stage=2)
    return shutil.copy(folder / "train.toml", folder / "two.toml")
