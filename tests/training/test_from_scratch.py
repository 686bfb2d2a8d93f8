"""Training from random init on drawn pages, end to end with models of a few thousand parameters."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmrr.backbones.qwen3_vl import Visual
from mmrr.embedders import colqwen3 as late
from mmrr.embedders import qwen3_vl as embedders
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints
from mmrr.scorers import minireranker
from mmrr.training.config import ScratchConfig, read
from mmrr.training.data import queries
from mmrr.training.data.online_negatives import Miner
from mmrr.training.data.tower_features import ReadPage, TowerFeatures
from mmrr.training.from_scratch import run as scratch
from mmrr.training.from_scratch.batches import BatchMaker, BatchPlan, batch_seed
from mmrr.training.from_scratch.run import train_embedder, train_reader, train_reranker
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.snippets import draw_snippet
from mmrr.workspace.files import HashCache, checksum_file
from tests.texts import write_texts
from tests.training.shared import tiny_shape

SHAPE = tiny_shape(3)


@pytest.fixture(scope="module", autouse=True)
def few_held_out_pages() -> Iterator[None]:
    """Drawing the pages to measure on would take longer than the runs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scratch, "HELD_OUT_REPORTS", 1)
        patched.setattr(scratch, "MATCHED_REPORTS", 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scratch")
    write_texts(folder / "texts.jsonl")
    return folder


def config(folder: Path, name: str, task: str, lines: str) -> Any:
    common = 'documents = "texts.jsonl"\npool = "pool"\nworkers = 0\nwarmup = 1\nreports = 2\nsave_every = 2\n'
    path = folder / f"{name}.toml"
    path.write_text(common + lines + SHAPE)
    found = read(path, task)
    assert isinstance(found, ScratchConfig)
    return found


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """A reader, an embedder and a reranker, trained for a few steps each."""
    last = {}
    for task, start, lines in (
        ("reader", train_reader, "steps = 4\nletters = 2\nevaluate_every = 4\n"),
        (
            "embedder",
            train_embedder,
            'reader = "reader"\nsteps = 3\npretraining = 2\npages = 2\nqueries = 2\npretrained_layers = 1\ndim = 8\n',
        ),
        (
            "reranker",
            train_reranker,
            'reader = "reader"\nembedder = "embedder"\nsteps = 3\npretraining = 2\npages = 2\nqueries = 4\n'
            'band = "1:2"\nexit = 2\npretrained_layers = 1\n',
        ),
    ):
        last[task] = list(start(config(folder, task, task, lines), folder / task))[-1]
        assert last[task]["step"] == last[task]["steps"]
    assert 0 <= last["reader"]["f1_characters"] <= 1
    for task in ("embedder", "reranker"):  # measured on held-out documents
        assert 0 <= last[task]["val_accuracy"] <= 1
        assert last[task]["val_loss"] > 0
    assert np.isfinite([record["loss"] for record in last.values()]).all()
    return folder


@pytest.mark.slow
def test_checkpoints_load_like_any_other_and_score(runs: Path) -> None:
    hashes = HashCache(runs / "hashes.json")
    page = Image.new("RGB", (160, 128), "white")
    device = torch.device("cpu")
    embedder = late.Embedder(
        checkpoints.resolve(str(runs / "embedder" / "checkpoint"), None, hashes),
        late.Prepare(),
        device,
        torch.float32,
    )
    (found,) = embedder.embed_pages([page])
    assert found.grid == (4, 5)
    assert found.vectors.shape == (6, 8)  # one vector for four tokens and one for the whole
    checkpoint = checkpoints.resolve(str(runs / "reranker" / "checkpoint"), None, hashes)
    prepare = minireranker.resolve(minireranker.Prepare(band="1:2"), checkpoint.config())
    scorer = minireranker.Scorer(checkpoint, prepare, device, torch.float32)
    states = scorer.prepare([page], [None])
    score = scorer.score("ferry", states, scorer.shared_state(), minireranker.Score())
    assert torch.isfinite(score).all()


@pytest.mark.slow
def test_frozen_tower_and_trained_language_models(runs: Path) -> None:
    """Embedder and reranker have the reader's tower, bit for bit, and other language models."""
    weights = {task: weights_of(runs / task / "checkpoint") for task in ("reader", "embedder", "reranker")}
    for name, tensor in weights["reader"].items():
        same = [torch.equal(tensor, weights[task][name]) for task in ("embedder", "reranker")]
        if ".visual." in name:
            assert all(same), name
        elif name.endswith("layers.0.mlp.up_proj.weight"):
            assert not any(same), name


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


@pytest.mark.slow
def test_a_finished_run_writes_its_checkpoint_again(runs: Path) -> None:
    weights = runs / "reader" / "checkpoint" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    settings = config(runs, "reader", "reader", "steps = 4\nletters = 2\nevaluate_every = 4\n")
    assert list(train_reader(settings, runs / "reader")) == []
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_a_model_wider_than_its_reader_gets_the_readers_tokens_and_zeros(runs: Path) -> None:
    """Here also without DeepStack. In float32 within 1e-6."""
    lines = 'reader = "reader"\nsteps = 1\npretraining = 1\npages = 2\nqueries = 2\npretrained_layers = 1\n'
    config(runs, "wide", "embedder", lines)
    path = runs / "wide.toml"
    text = path.read_text()
    for old, new in (
        ("\nhidden = 64", "\nhidden = 96"),
        ("\nheads = 2", "\nheads = 3"),
        ("kv_heads = 1", "kv_heads = 3"),
    ):
        text = text.replace(old, new)
    path.write_text(text.replace("deepstack = [0]", "deepstack = []"))
    (*_, last) = train_embedder(read(path, "embedder"), runs / "wide")
    assert np.isfinite(last["loss"])
    page = draw_snippet(["ferry", "harbour", "lamp"], 160, 128, random.Random(0)).image
    narrow, wide = (seen(runs / name / "checkpoint", page) for name in ("reader", "wide"))
    assert len(narrow.deepstack) == 1
    assert len(wide.deepstack) == 0
    assert wide.tokens.shape[1] == 96
    assert torch.allclose(wide.tokens[:, :64], narrow.tokens, atol=1e-6)
    assert not wide.tokens[:, 64:].any()
    assert trained_with_its_attention(runs) >= 1


def trained_with_its_attention(runs: Path) -> int:
    """The saliency stored for a reranker equals that of the wide embedder on the page images, within 1e-2."""
    lines = 'reader = "reader"\nembedder = "wide"\nsteps = 1\npretraining = 1\npages = 2\nqueries = 2\n'
    lines += "pretrained_layers = 1\n"
    settings = config(runs, "pruned", "reranker", lines + 'band = "1:2"\nexit = 2\n')
    list(train_reranker(settings, runs / "pruned"))
    found = checkpoints.resolve(str(runs / "wide" / "checkpoint"), None, HashCache(runs / "hashes.json"))
    embedder = late.Embedder(found, late.Prepare(), torch.device("cpu"), torch.float32)
    name = checksum_file(runs / "wide" / "checkpoint" / "model.safetensors")[:12]
    kept = sorted((runs / "pool").glob(f"features-*/*.{name}.vectors"))
    for path in kept:
        report, number = path.name.split(".")[0].split("-")
        with Image.open(runs / "pool" / report / f"{number}.png") as image:
            (own,) = embedder.embed_pages([image.convert("RGB")])
        made = load_file(path)  # in bfloat16
        assert torch.allclose(made["saliency"], own.saliency, rtol=1e-2, atol=1e-4)
        assert torch.allclose(made["vectors"].float().mean(0), own.vectors.float().mean(0), atol=2e-2)
    return len(kept)


def seen(checkpoint: Path, page: Image.Image) -> Visual:
    found = checkpoints.resolve(str(checkpoint), None, HashCache(checkpoint.parent / "hashes.json"))
    family = late if checkpoint.parent.name == "wide" else embedders
    embedder = family.Embedder(found, family.Prepare(), torch.device("cpu"), torch.float32)
    (visual,) = embedder.backbone.vision([page])
    assert isinstance(visual, Visual)
    return visual


@pytest.mark.slow
def test_a_reranker_starts_from_another_with_other_cuts(runs: Path) -> None:
    """It takes the trained weights, draws other batches, and skips the pre-training."""
    lines = 'reader = "reader"\nsteps = 1\nlr = 1e-9\npages = 2\nqueries = 4\n'
    lines += "pretrained_layers = 1\npretraining = 1\n"
    cuts = 'band = "0:3"\nexit = 3\nkeep = 1.0\n'
    config(runs, "onward", "reranker", lines + cuts + 'start = "reranker"\n')
    (*_, last) = train_reranker(read(runs / "onward.toml", "reranker"), runs / "onward")
    assert np.isfinite(last["loss"])
    assert not (runs / "onward" / "spelling").exists()
    weights = [weights_of(runs / name / "checkpoint") for name in ("reranker", "onward")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor.float(), weights[1][name].float(), atol=1e-3), name
    begun = checkpoints.resolve(str(runs / "reranker" / "checkpoint"), None, HashCache(runs / "hashes.json"))
    assert len({batch_seed(0, None), batch_seed(1, None), batch_seed(0, begun), batch_seed(1, begun)}) == 4
    config(runs, "nowhere", "reranker", lines + cuts + 'start = "not-there"\n')
    with pytest.raises(MmrrError, match="`start` is the run folder of a finished run"):
        list(train_reranker(read(runs / "nowhere.toml", "reranker"), runs / "nowhere"))


@pytest.mark.slow
def test_every_page_of_a_crossed_batch_has_the_queries_of_all_pages(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except other pages' phrases that it contains. Its own queries are relevant."""
    monkeypatch.setattr(queries, "vary", lambda text, rng: text)
    features, keys = written_pages(runs, config(runs, "crossed", "reranker", ""), 2)
    batch = BatchMaker(features, keys, "0", BatchPlan(pages=4, queries=16, kind="crossed"))(1)
    assert len(batch.pages) >= 3
    everything = {query.text for labelled in batch.queries for query in labelled}
    assert len(everything) > 2 * len(batch.pages)
    written = {question.text for page in batch.pages for question in page.questions}
    for page, labelled in zip(batch.pages, batch.queries, strict=True):
        own = {question.text for question in page.questions}
        texts = {query.text: query.relevant for query in labelled}
        assert sum(texts.values()) >= 2
        for text in everything:
            if text in written:
                assert texts[text] == (text in own)
            elif text not in texts:  # this page contains the phrase too
                assert queries.contains_phrase(page, text)
            else:
                assert texts[text] == queries.contains_phrase(page, text)


@pytest.mark.slow
def test_a_page_without_words_is_drawn_again(runs: Path) -> None:
    """A batch that begins with one has no queries and is drawn again. If no page has words, one line says so."""
    features, keys = written_pages(runs, config(runs, "blank", "reranker", ""), 1)
    blank = (9, 0)
    load = features.load
    features.load = lambda *key: (  # type: ignore[method-assign]
        replace(load(*keys[0]), words=(), folded=(), blocks=(), cells=(), questions=()) if key == blank else load(*key)
    )
    plan = BatchPlan(pages=2, queries=4, kind="labelled", mine=lambda *_: [])
    make = BatchMaker(features, [*[blank] * 9, keys[0]], "0", plan)
    assert all(len(make(step).pages) == 1 for step in range(5))
    with pytest.raises(MmrrError, match="found no words for a query on any of 64 drawn pages; expected longer texts"):
        BatchMaker(features, [blank], "0", BatchPlan(pages=2, queries=4, kind="answered"))(0)


def written_pages(runs: Path, settings: ScratchConfig, reports: int) -> tuple[TowerFeatures, list[tuple[int, int]]]:
    """Features of the pages of the first reports, made by the runs' reader."""
    known, _ = scratch.documents(settings)
    pool = PagePool(runs / "pool", known, 0)
    folder = pool.folder / f"features-{checksum_file(runs / 'reader' / 'checkpoint' / 'model.safetensors')[:12]}"
    return TowerFeatures(folder, pool), [
        (report, page) for report in range(reports) for page in range(pool.page_count(report))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_mining_finds_the_best_pages_of_a_query(runs: Path, temperature: float) -> None:
    """Against scoring one page at a time; the query's own page is left out."""
    features, keys = written_pages(runs, config(runs, "mined", "reranker", ""), 2)
    generator = torch.Generator().manual_seed(0)
    vectors = {key: torch.randn(2 + at % 3, 8, generator=generator) for at, key in enumerate(keys)}
    encoded = [torch.randn(n, 8, generator=generator) for n in (1, 3)]
    features.vectors = lambda report, number: vectors[report, number]  # type: ignore[method-assign]
    embedder = SimpleNamespace(
        embed_queries=lambda texts, search: encoded[: len(texts)], temperature=lambda search: temperature
    )
    found = Miner(embedder, None, features, keys, 3)(["a", "b"], keys[1])
    for query, chosen in zip(encoded, found, strict=True):
        best = torch.stack([(query @ vectors[key].T).amax(1) for key in keys])
        if temperature:
            best = best * (len(keys) / ((best - best.amax(0)) / temperature).exp().sum(0)).log()
        score = {key: float(row) for key, row in zip(keys, best.sum(1), strict=True) if key != keys[1]}
        assert chosen == sorted(score, key=lambda key: -score[key])[:3]
    assert [len(one) for one in Miner(embedder, None, features, keys[:2], 3)(["a"], keys[1])] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("crossed", [True, False], ids=["reranker", "embedder"])
def test_a_batch_takes_mined_pages_from_each_query_in_turn(runs: Path, crossed: bool) -> None:
    """At most the number of pages in the plan; the first page has the queries that the pages were mined for."""
    features, keys = written_pages(runs, config(runs, "turns", "embedder", ""), 2)
    searched: dict[str, tuple[int, int]] = {}

    def mine(texts: Sequence[str], key: tuple[int, int]) -> list[list[tuple[int, int]]]:
        searched.update(dict.fromkeys(texts, key))
        others = [other for other in keys if other != key]
        return [others[:1], others[1:4], *([others[:2]] * (len(texts) - 2))]

    loaded: list[tuple[int, int]] = []
    load = features.load
    features.load = lambda *key: loaded.append(key) or load(*key)  # type: ignore[method-assign, func-returns-value]
    for most, expected in ((3, 3), (9, 5)):
        loaded.clear(), searched.clear()
        plan = BatchPlan(pages=most, queries=8, kind="crossed" if crossed else "answered", mine=mine)
        batch = BatchMaker(features, keys, "0", plan)(0)
        (first,) = set(searched.values())
        others = [other for other in keys if other != first]
        assert loaded[:2] == [first, others[0]]
        assert loaded[2] in others[1:4]
        assert len(loaded) == len(set(loaded)) == len(batch.pages) == expected
        assert {query.text for query in batch.queries[0] if query.relevant} >= set(searched)
        assert len(searched) == (4 if crossed else 8)


@pytest.mark.slow
def test_half_of_a_batch_is_of_one_report_without_mining(runs: Path) -> None:
    features, keys = written_pages(runs, config(runs, "near", "embedder", ""), 2)
    loaded: list[tuple[int, int]] = []
    features.load = lambda *key: loaded.append(key) or ReadPage(*[()] * 9)  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(MmrrError, match="found no words"):
        BatchMaker(features, keys, "0", BatchPlan(pages=8, queries=0, kind="answered"))(0)
    first = keys.index(loaded[0])
    assert loaded[:4] == [keys[(first + i) % len(keys)] for i in range(4)]


@pytest.mark.slow
def test_an_embedder_trains_on_mined_pages(runs: Path) -> None:
    """The keys of the config, end to end, and the errors for missing and useless keys."""
    lines = 'reader = "reader"\nstart = "embedder"\nsteps = 2\npages = 3\nqueries = 2\ndim = 8\nmined = 2\n'
    settings = config(runs, "searching", "embedder", lines + 'embedder = "embedder"\n')
    (*_, last) = train_embedder(settings, runs / "searching")
    assert last["step"] == 2
    assert 0 <= last["val_accuracy"] <= 1
    with pytest.raises(MmrrError, match="no `embedder` to mine with"):
        list(train_embedder(config(runs, "alone", "embedder", lines), runs / "alone"))
    keeping = lines.replace("mined = 2", "attention_distillation = 1.0\nlr = 1e-9\nstrips = 0.0")
    settings = config(runs, "keeping", "embedder", keeping + 'embedder = "embedder"\n')
    first = next(one for one in train_embedder(settings, runs / "keeping") if "attention_distillation" in one)
    assert first["attention_distillation"] < 1e-3  # it starts from the embedder that it is distilled from
    with pytest.raises(MmrrError, match="no `embedder` to distill from"):
        list(train_embedder(config(runs, "loose", "embedder", keeping), runs / "loose"))
    idle = config(runs, "idle", "embedder", 'reader = "reader"\nembedder = "embedder"\n')
    with pytest.raises(MmrrError, match="and both are 0; set one, or remove `embedder`"):
        list(train_embedder(idle, runs / "idle"))


@pytest.mark.slow
def test_a_reranker_trains_on_mined_pages(runs: Path) -> None:
    """The keys of the config, end to end, and the errors for missing and useless keys."""
    lines = (
        'reader = "reader"\nstart = "reranker"\nsteps = 2\npages = 3\nqueries = 6\npretrained_layers = 1\nmined = 2\n'
    )
    cuts = 'band = "1:2"\nexit = 2\nranking = 1.0\n'
    settings = config(runs, "ranking", "reranker", lines + cuts + 'embedder = "embedder"\n')
    (*_, last) = train_reranker(settings, runs / "ranking")
    assert last["loss"] == pytest.approx(last["judged"] + last["pointed"] + last["ranked"], rel=1e-3)
    assert 0 <= last["val_first"] <= 1
    with pytest.raises(MmrrError, match="no `embedder` to mine with"):
        list(train_reranker(config(runs, "blind", "reranker", lines + cuts), runs / "blind"))
    unranked = lines + 'band = "1:2"\nexit = 2\nembedder = "embedder"\n'
    with pytest.raises(MmrrError, match="but ranking = 0"):
        list(train_reranker(config(runs, "unranked", "reranker", unranked), runs / "unranked"))


@pytest.mark.slow
def test_a_reader_continues_from_another(runs: Path) -> None:
    """With a tiny rate it ends with the weights that it began with, heads and tower; a random one does not."""

    def weights(name: str) -> dict[str, Any]:
        return load_file(runs / name / "heads.safetensors") | weights_of(runs / name / "checkpoint")

    lines = "steps = 1\nletters = 0\nlr = 1e-9\n"
    before = weights("reader")
    for name, more, same in (("again", 'reader = "reader"\n', True), ("random", "", False)):
        list(train_reader(config(runs, name, "reader", lines + more), runs / name))
        after = weights(name)
        assert before.keys() == after.keys()
        alike = {part for part in before if torch.allclose(before[part].float(), after[part].float(), atol=1e-6)}
        assert (alike == set(before)) == same
        for part in ("merger.linear_fc2.weight", "characters.weight"):
            assert any(found.endswith(part) for found in alike) == same, part


@pytest.mark.slow
def test_with_keep_heads_only_the_tower_changes(runs: Path) -> None:
    lines = 'steps = 2\nletters = 0\nreader = "reader"\nkeep_heads = true\n'
    list(train_reader(config(runs, "kept", "reader", lines), runs / "kept"))
    before, after = (load_file(runs / name / "heads.safetensors") for name in ("reader", "kept"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    weights = [weights_of(runs / name / "checkpoint") for name in ("reader", "kept")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if ".visual." in name)

    lines = 'reader = "kept"\nstart = "reranker"\nsteps = 1\npages = 2\nqueries = 4\nband = "1:2"\nexit = 2\n'
    lines += "pretrained_layers = 1\n"
    list(train_reranker(config(runs, "taking", "reranker", lines), runs / "taking"))
    taken = weights_of(runs / "taking" / "checkpoint")
    assert all(torch.equal(tensor, taken[name]) for name, tensor in weights[1].items() if ".visual." in name)


def test_heads_to_keep_need_a_reader(folder: Path) -> None:
    settings = config(folder, "headless", "reader", "keep_heads = true\n")
    with pytest.raises(MmrrError, match="keep_heads = true, but the config names no `reader`"):
        list(train_reader(settings, folder / "headless"))


def test_a_missing_reader_is_named(folder: Path) -> None:
    settings = config(folder, "lost", "reranker", 'reader = "nowhere"\nband = "1:2"\nexit = 2\npretrained_layers = 1\n')
    with pytest.raises(MmrrError, match=r"no trained reader at .*nowhere; run mmrr train reader first"):
        list(train_reranker(settings, folder / "lost"))


def test_the_pointing_layer_must_lie_in_the_band(folder: Path) -> None:
    settings = config(folder, "blind", "reranker", 'reader = "reader"\nband = "1:2"\nexit = 2\n')
    with pytest.raises(MmrrError, match=r"pretrained_layers = 2: .*must lie in the band 1:2"):
        list(train_reranker(settings, folder / "blind"))


@pytest.mark.slow
def test_the_log_has_the_losses_of_the_training(runs: Path) -> None:
    lines = (runs / "reranker" / "log.jsonl").read_text().splitlines()
    assert {"judged", "pointed", "accuracy"} <= set(json.loads(lines[-1]))
