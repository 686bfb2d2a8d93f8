"""Training from nothing on drawn pages, end to end with a model of a few thousand parameters."""

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
from transformers import AutoImageProcessor, AutoTokenizer

from mmrr import random_checkpoint
from mmrr.backbones.qwen3_vl import Visual
from mmrr.embedders import colqwen3 as late
from mmrr.embedders import qwen3_vl as embedders
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints
from mmrr.scorers import minireranker
from mmrr.training.config import ScratchConfig, read
from mmrr.training.data import queries
from mmrr.training.data.cell_targets import ALPHABET, CellTargets, fold, word_hashes
from mmrr.training.data.online_negatives import Miner
from mmrr.training.data.queries import LabelledQuery, folded_ends
from mmrr.training.data.tower_features import ReadPage, TowerFeatures
from mmrr.training.from_scratch import run as scratch
from mmrr.training.from_scratch.matching import Batch, BatchMaker, batch_seed, ranked
from mmrr.training.from_scratch.reader import Reader, faster, patchify
from mmrr.training.from_scratch.run import train_embedder, train_reader, train_reranker
from mmrr.training.synthetic.page_pool import LocatedQuestion, PagePool
from mmrr.training.synthetic.snippets import draw_snippet
from mmrr.workspace.files import HashCache, checksum_file
from tests.texts import write_texts

SHAPE = """
[shape]
layers = 3
hidden = 64
mlp = 96
heads = 2
kv_heads = 1
head_dim = 32
vision_layers = 2
vision_hidden = 48
vision_heads = 2
vision_mlp = 64
deepstack = [0]
"""


@pytest.fixture(scope="module", autouse=True)
def few_held_out_pages() -> Iterator[None]:
    """Drawing pages to measure on takes longer than the runs themselves."""
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
    """Reader, embedder and reranker, a few steps each."""
    last = {}
    for task, start, lines in (
        ("reader", train_reader, "steps = 4\nletters = 2\nevaluate_every = 4\n"),
        (
            "embedder",
            train_embedder,
            'reader = "reader"\nsteps = 3\nspelling = 2\npages = 2\nqueries = 2\nspelled = 1\ndim = 8\n',
        ),
        (
            "reranker",
            train_reranker,
            'reader = "reader"\nembedder = "embedder"\nsteps = 3\nspelling = 2\npages = 2\nqueries = 4\n'
            'band = "1:2"\nexit = 2\nspelled = 1\n',
        ),
    ):
        last[task] = list(start(config(folder, task, task, lines), folder / task))[-1]
        assert last[task]["step"] == last[task]["steps"]
    assert 0 <= last["reader"]["f1_characters"] <= 1
    for task in ("embedder", "reranker"):  # measured on documents that are held out
        assert 0 <= last[task]["val_right"] <= 1
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
    assert found.vectors.shape == (6, 8)  # one for four tokens and one of the whole
    checkpoint = checkpoints.resolve(str(runs / "reranker" / "checkpoint"), None, hashes)
    prepare = minireranker.resolve(minireranker.Prepare(band="1:2"), checkpoint.config())
    scorer = minireranker.Scorer(checkpoint, prepare, device, torch.float32)
    states = scorer.prepare([page], [None])
    score = scorer.score("ferry", states, scorer.shared_state(), minireranker.Score())
    assert torch.isfinite(score).all()


@pytest.mark.slow
def test_frozen_tower_and_trained_language_models(runs: Path) -> None:
    """The tower of embedder and reranker is the reader's, bit for bit; their language models are their own."""
    weights = {task: fresh_weights(runs / task / "checkpoint") for task in ("reader", "embedder", "reranker")}
    for name, tensor in weights["reader"].items():
        same = [torch.equal(tensor, weights[task][name]) for task in ("embedder", "reranker")]
        if ".visual." in name:
            assert all(same), name
        elif name.endswith("layers.0.mlp.up_proj.weight"):
            assert not any(same), name


def fresh_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

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
def test_a_model_wider_than_its_reader_sees_the_readers_tokens_and_zeros(runs: Path) -> None:
    """Here without DeepStack too. In float32 within 1e-6."""
    lines = 'reader = "reader"\nsteps = 1\nspelling = 1\npages = 2\nqueries = 2\nspelled = 1\n'
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
    """Pages' attention as a reranker's training keeps it is the wide embedder's own on their images, within 1e-2."""
    lines = 'reader = "reader"\nembedder = "wide"\nsteps = 1\nspelling = 1\npages = 2\nqueries = 2\nspelled = 1\n'
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
    embedder = embedders.Embedder(found, embedders.Prepare(), torch.device("cpu"), torch.float32)
    (visual,) = embedder.backbone.vision([page])
    assert isinstance(visual, Visual)
    return visual


@pytest.mark.slow
def test_a_reranker_goes_on_from_another_with_other_cuts(runs: Path) -> None:
    """With the trained one's weights and batches of its own; nothing is spelt again."""
    lines = 'reader = "reader"\nsteps = 1\nlr = 1e-9\npages = 2\nqueries = 4\nspelled = 1\nspelling = 1\n'
    cuts = 'band = "0:3"\nexit = 3\nkeep = 1.0\n'
    config(runs, "onward", "reranker", lines + cuts + 'start = "reranker"\n')
    (*_, last) = train_reranker(read(runs / "onward.toml", "reranker"), runs / "onward")
    assert np.isfinite(last["loss"])
    assert not (runs / "onward" / "spelling").exists()
    weights = [fresh_weights(runs / name / "checkpoint") for name in ("reranker", "onward")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor.float(), weights[1][name].float(), atol=1e-3), name
    begun = checkpoints.resolve(str(runs / "reranker" / "checkpoint"), None, HashCache(runs / "hashes.json"))
    assert len({batch_seed(0, None), batch_seed(1, None), batch_seed(0, begun), batch_seed(1, begun)}) == 4
    config(runs, "nowhere", "reranker", lines + cuts + 'start = "not-there"\n')
    with pytest.raises(MmrrError, match="`start` is the --run folder of a run that has ended"):
        list(train_reranker(read(runs / "nowhere.toml", "reranker"), runs / "nowhere"))


@pytest.mark.slow
def test_every_page_of_a_batch_is_asked_the_queries_of_all(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for phrases that it writes too. It answers its own."""
    monkeypatch.setattr(queries, "loosen", lambda text, rng: text)
    features, keys = written_pages(runs, config(runs, "crossed", "reranker", ""), 2)
    batch = BatchMaker(features, keys, "0", pages=4, queries=16, answered_only=False, crossed=True)(1)
    assert len(batch.pages) >= 3
    everything = {query.text for asked in batch.queries for query in asked}
    assert len(everything) > 2 * len(batch.pages)
    written = {question.text for page in batch.pages for question in page.questions}
    for page, asked in zip(batch.pages, batch.queries, strict=True):
        own = {question.text for question in page.questions}
        texts = {query.text: query.relevant for query in asked}
        assert sum(texts.values()) >= 2
        for text in everything:
            if text in written:
                assert texts[text] == (text in own)
            elif text not in texts:  # it answers as well
                assert queries.contains_phrase(page, text)
            else:
                assert texts[text] == queries.contains_phrase(page, text)


def test_words_in_another_order_are_not_written() -> None:
    page = ReadPage(
        *[()] * 5, folded=("a", "rope", "", "of", "grey", "rope", "and", "wire"), blocks=(), cells=(), questions=()
    )  # type: ignore[arg-type]
    for text in ("rope of grey", "Rope, of GREY", "rope — of", "and wire", "A rope"):
        assert queries.contains_phrase(page, text), text
    for text in ("grey of rope", "a wire", "rop", "of gre", "wire and"):
        assert not queries.contains_phrase(page, text), text


@pytest.mark.slow
def test_a_page_without_words_is_drawn_again(runs: Path) -> None:
    """A batch that begins with one has no queries; where all pages are like it, that is said."""
    features, keys = written_pages(runs, config(runs, "blank", "reranker", ""), 1)
    blank = (9, 0)
    load = features.load
    features.load = lambda *key: (  # type: ignore[method-assign]
        replace(load(*keys[0]), words=(), folded=(), blocks=(), cells=(), questions=()) if key == blank else load(*key)
    )
    make = BatchMaker(
        features, [*[blank] * 9, keys[0]], "0", pages=2, queries=4, answered_only=False, mine=lambda *_: []
    )
    assert all(len(make(step).pages) == 1 for step in range(5))
    with pytest.raises(MmrrError, match="found no words to ask for on any of 64 pages drawn, expected longer texts"):
        BatchMaker(features, [blank], "0", pages=2, queries=4, answered_only=True)(0)


def written_pages(runs: Path, settings: ScratchConfig, reports: int) -> tuple[TowerFeatures, list[tuple[int, int]]]:
    """The pages of the first reports, read by the runs' reader."""
    known, _ = scratch.documents(settings)
    pool = PagePool(runs / "pool", known, 0)
    folder = pool.folder / f"features-{checksum_file(runs / 'reader' / 'checkpoint' / 'model.safetensors')[:12]}"
    return TowerFeatures(folder, pool), [
        (report, page) for report in range(reports) for page in range(pool.page_count(report))
    ]


def test_the_ranking_loss_is_cross_entropy_over_the_pages_that_were_asked() -> None:
    """Three pages; by hand. One query is asked of one page alone, one is answered by none: neither says anything."""
    asked = [
        [LabelledQuery("a", True), LabelledQuery("b", False), LabelledQuery("alone", True)],
        [LabelledQuery("a", False), LabelledQuery("b", True), LabelledQuery("none", False)],
        [LabelledQuery("b", True), LabelledQuery("a", False), LabelledQuery("none", False)],
    ]
    z = torch.tensor([1.0, 0.5, 7.0, 2.0, -1.0, 3.0, 0.25, -0.5, 4.0], requires_grad=True)
    y = torch.tensor([query.relevant for queries in asked for query in queries])
    batch = Batch([None] * 3, asked)  # type: ignore[list-item]
    loss, first = ranked(z, y, batch)
    by_hand_a = -torch.log_softmax(torch.tensor([1.0, 2.0, -0.5]), 0)[0]
    shares = torch.softmax(torch.tensor([0.5, -1.0, 0.25]), 0)
    torch.testing.assert_close(loss, (by_hand_a - torch.log(shares[1] + shares[2])) / 2)
    assert first == 0
    loss.backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad[[2, 5, 8]].eq(0).all()
    nothing, _ = ranked(z, torch.zeros_like(y), batch)
    assert nothing == 0


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_mined_are_the_pages_that_fit_a_query_best(runs: Path, temperature: float) -> None:
    """As a search finds them, against one page scored at a time; the query's own page is left out."""
    features, keys = written_pages(runs, config(runs, "mined", "reranker", ""), 2)
    generator = torch.Generator().manual_seed(0)
    vectors = {key: torch.randn(2 + at % 3, 8, generator=generator) for at, key in enumerate(keys)}
    asked = [torch.randn(n, 8, generator=generator) for n in (1, 3)]
    features.vectors = lambda report, number: vectors[report, number]  # type: ignore[method-assign]
    embedder = SimpleNamespace(
        embed_queries=lambda texts, search: asked[: len(texts)], temperature=lambda search: temperature
    )
    found = Miner(embedder, None, features, keys, 3)(["a", "b"], keys[1])
    for query, chosen in zip(asked, found, strict=True):
        best = torch.stack([(query @ vectors[key].T).amax(1) for key in keys])
        if temperature:
            best = best * (len(keys) / ((best - best.amax(0)) / temperature).exp().sum(0)).log()
        score = {key: float(row) for key, row in zip(keys, best.sum(1), strict=True) if key != keys[1]}
        assert chosen == sorted(score, key=lambda key: -score[key])[:3]
    assert [len(one) for one in Miner(embedder, None, features, keys[:2], 3)(["a"], keys[1])] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("crossed", [True, False], ids=["reranker", "embedder"])
def test_a_batch_takes_what_is_found_for_each_query_in_turn(runs: Path, crossed: bool) -> None:
    """As many pages as asked for, or as are found; the queries that they were found for are asked."""
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
        batch = BatchMaker(
            features, keys, "0", pages=most, queries=8, answered_only=not crossed, crossed=crossed, mine=mine
        )(0)
        (first,) = set(searched.values())
        others = [other for other in keys if other != first]
        assert loaded[:2] == [first, others[0]]
        assert loaded[2] in others[1:4]
        assert len(loaded) == len(set(loaded)) == len(batch.pages) == expected
        assert {query.text for query in batch.queries[0] if query.relevant} >= set(searched)
        assert len(searched) == (4 if crossed else 8)


@pytest.mark.slow
def test_half_of_a_batch_is_of_one_report_where_none_are_mined(runs: Path) -> None:
    features, keys = written_pages(runs, config(runs, "near", "embedder", ""), 2)
    loaded: list[tuple[int, int]] = []
    features.load = lambda *key: loaded.append(key) or ReadPage(*[()] * 9)  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(MmrrError, match="found no words"):
        BatchMaker(features, keys, "0", pages=8, queries=0, answered_only=True)(0)
    first = keys.index(loaded[0])
    assert loaded[:4] == [keys[(first + i) % len(keys)] for i in range(4)]


@pytest.mark.slow
def test_an_embedder_learns_among_pages_found_for_a_query(runs: Path) -> None:
    """The keys of the config, end to end, and what is said where no embedder could mine."""
    lines = 'reader = "reader"\nstart = "embedder"\nsteps = 2\npages = 3\nqueries = 2\ndim = 8\nmined = 2\n'
    settings = config(runs, "searching", "embedder", lines + 'embedder = "embedder"\n')
    (*_, last) = train_embedder(settings, runs / "searching")
    assert last["step"] == 2
    assert 0 <= last["val_right"] <= 1
    with pytest.raises(MmrrError, match="no `embedder` that finds pages for queries"):
        list(train_embedder(config(runs, "alone", "embedder", lines), runs / "alone"))
    keeping = lines.replace("mined = 2", "held = 1.0\nlr = 1e-9\nstrips = 0.0")
    settings = config(runs, "keeping", "embedder", keeping + 'embedder = "embedder"\n')
    first = next(one for one in train_embedder(settings, runs / "keeping") if "held" in one)
    assert first["held"] < 1e-3  # it is the embedder that it is held to, and hardly moves
    with pytest.raises(MmrrError, match="no `embedder` whose attention is held"):
        list(train_embedder(config(runs, "loose", "embedder", keeping), runs / "loose"))
    idle = config(runs, "idle", "embedder", 'reader = "reader"\nembedder = "embedder"\n')
    with pytest.raises(MmrrError, match="and both are 0: set one, or leave it out"):
        list(train_embedder(idle, runs / "idle"))


@pytest.mark.slow
def test_a_reranker_learns_to_rank_pages_found_for_a_query(runs: Path) -> None:
    """The keys of the config, end to end, and what is said where no embedder could mine."""
    lines = 'reader = "reader"\nstart = "reranker"\nsteps = 2\npages = 3\nqueries = 6\nspelled = 1\nmined = 2\n'
    cuts = 'band = "1:2"\nexit = 2\nranking = 1.0\n'
    settings = config(runs, "ranking", "reranker", lines + cuts + 'embedder = "embedder"\n')
    (*_, last) = train_reranker(settings, runs / "ranking")
    assert last["loss"] == pytest.approx(last["judged"] + last["pointed"] + last["ranked"], rel=1e-3)
    assert 0 <= last["val_first"] <= 1
    with pytest.raises(MmrrError, match="no `embedder` that finds pages for queries"):
        list(train_reranker(config(runs, "blind", "reranker", lines + cuts), runs / "blind"))
    unranked = lines + 'band = "1:2"\nexit = 2\nembedder = "embedder"\n'
    with pytest.raises(MmrrError, match="but ranking = 0"):
        list(train_reranker(config(runs, "unranked", "reranker", unranked), runs / "unranked"))


@pytest.mark.slow
def test_a_reader_goes_on_from_another(runs: Path) -> None:
    """At a rate of nearly nothing it ends as the one that it began with, heads and tower; a fresh one does not."""

    def weights(name: str) -> dict[str, Any]:
        return load_file(runs / name / "heads.safetensors") | fresh_weights(runs / name / "checkpoint")

    lines = "steps = 1\nletters = 0\nlr = 1e-9\n"
    before = weights("reader")
    for name, more, same in (("again", 'reader = "reader"\n', True), ("anew", "", False)):
        list(train_reader(config(runs, name, "reader", lines + more), runs / name))
        after = weights(name)
        assert before.keys() == after.keys()
        alike = {part for part in before if torch.allclose(before[part].float(), after[part].float(), atol=1e-6)}
        assert (alike == set(before)) == same
        for part in ("merger.linear_fc2.weight", "characters.weight"):
            assert any(found.endswith(part) for found in alike) == same, part


@pytest.mark.slow
def test_a_reader_that_keeps_its_heads_changes_its_tower_alone(runs: Path) -> None:
    lines = 'steps = 2\nletters = 0\nreader = "reader"\nkeep_heads = true\n'
    list(train_reader(config(runs, "kept", "reader", lines), runs / "kept"))
    before, after = (load_file(runs / name / "heads.safetensors") for name in ("reader", "kept"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    weights = [fresh_weights(runs / name / "checkpoint") for name in ("reader", "kept")]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0] if ".visual." in name)

    lines = (
        'reader = "kept"\nstart = "reranker"\nsteps = 1\npages = 2\nqueries = 4\nband = "1:2"\nexit = 2\nspelled = 1\n'
    )
    list(train_reranker(config(runs, "taking", "reranker", lines), runs / "taking"))
    taken = fresh_weights(runs / "taking" / "checkpoint")
    assert all(torch.equal(tensor, taken[name]) for name, tensor in weights[1].items() if ".visual." in name)


def test_heads_to_keep_need_a_reader(folder: Path) -> None:
    settings = config(folder, "headless", "reader", "keep_heads = true\n")
    with pytest.raises(MmrrError, match="keep_heads = true, but the config names no `reader`"):
        list(train_reader(settings, folder / "headless"))


def test_a_missing_reader_is_named(folder: Path) -> None:
    settings = config(folder, "lost", "reranker", 'reader = "nowhere"\nband = "1:2"\nexit = 2\nspelled = 1\n')
    with pytest.raises(MmrrError, match=r"no trained reader at .*nowhere: run mmrr train reader first"):
        list(train_reranker(settings, folder / "lost"))


def test_pointing_needs_the_band(folder: Path) -> None:
    settings = config(folder, "blind", "reranker", 'reader = "reader"\nband = "1:2"\nexit = 2\n')
    with pytest.raises(MmrrError, match=r"spelled = 2: .*must lie in the band 1:2"):
        list(train_reranker(settings, folder / "blind"))


@pytest.mark.slow
def test_answers_and_fixed_phrases_are_one_token_and_other_words_bytes(runs: Path) -> None:
    """As transformers loads it from the checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(runs / "reader" / "checkpoint")
    for text in ("yes", "no", *random_checkpoint.PHRASES):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    for text in ("yesterday knows", "Query: system user", "<Query>:né 7", random_checkpoint.PHRASES[1].lower()):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text


def test_strips_are_rows_of_the_page() -> None:
    page = ReadPage(
        tokens=torch.arange(12.0)[:, None],
        deepstack=torch.arange(12.0)[None, :, None],
        grid=(4, 3),
        saliency=torch.arange(12.0),
        words=("One", "two", "three"),
        folded=("one", "two", "three"),
        blocks=(0, 0, 1),
        cells=((1, 2), (4, 5), (5, 8)),
        questions=(LocatedQuestion("what?", "this", (0,)),),
    )
    strip = page.strip(1, 2)
    assert strip.grid == (2, 3)
    assert strip.tokens.flatten().tolist() == strip.deepstack.flatten().tolist() == [3, 4, 5, 6, 7, 8]
    assert strip.words == ("two", "three")
    assert strip.cells == ((1, 2), (2, 5))
    assert page.strip(0, 2).words == ("One", "two")
    assert strip.questions == ()


@pytest.mark.slow
def test_patches_are_those_of_the_image_processor(runs: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(runs / "reader" / "checkpoint", backend="pil")
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 64, 3), dtype=np.uint8)
    there = processor(images=[Image.fromarray(image[0])], do_resize=False, return_tensors="pt")["pixel_values"]
    assert torch.equal(there, patchify(image))


@pytest.mark.parametrize("side", [16, 18])
def test_faster_attention_is_the_stock_tower(side: int) -> None:
    """256 patches attend by plain products, 324 by the fused kernel; both within 1e-5 of transformers' tower."""
    tower = random_checkpoint.new_model(random_checkpoint.Shape(vision_layers=2)).model.visual.eval()
    pixels, grid = torch.randn(2 * side * side, 1536), torch.tensor([[1, side, side]] * 2)
    with torch.no_grad():
        stock = tower(pixels, grid_thw=grid).pooler_output
        assert torch.allclose(faster(tower)(pixels, grid_thw=grid).pooler_output, stock, atol=1e-5)


def test_reading_is_learnt_on_one_batch(folder: Path) -> None:
    """Dense supervision reaches the patches: the loss on one batch falls by a third in sixty steps."""
    import random

    drawn = draw_snippet(["ferry", "quarry"], 256, 128, random.Random(0))
    characters, hashes = CellTargets(drawn.words).crop(0, 0, 8, 4, 32)
    model = random_checkpoint.new_model(random_checkpoint.Shape(vision_layers=2))
    reader = Reader(model.model.visual, 256)
    from mmrr.training.from_scratch.reader import Crops

    batch = Crops(
        patchify(np.asarray(drawn.image)[None]),
        torch.tensor([[1, 8, 16]]),
        torch.from_numpy(characters),
        torch.from_numpy(hashes),
    )
    optimizer = torch.optim.AdamW(reader.parameters(), 1e-3)
    losses = []
    for _ in range(60):
        loss = reader.losses(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 2 / 3


def test_targets_say_what_stands_in_each_cell() -> None:
    drawn = draw_snippet(["abc"], 64, 32, __import__("random").Random(1))
    characters, hashes = CellTargets(drawn.words).crop(0, 0, 2, 1, 32)
    for cell in range(2):
        inside = [
            (character, word.text)
            for word in drawn.words
            for character, (x, y) in zip(word.text, word.centres, strict=True)
            if x // 32 == cell and y // 32 == 0
        ]
        assert {ALPHABET[i] for i in characters[cell].nonzero()[0]} == {fold(character) for character, _ in inside}
        assert set(hashes[cell].nonzero()[0]) == {h for _, word in inside for h in word_hashes(fold(word))}


def test_word_ends_count_bytes() -> None:
    text = "Café (1,452.4) naïve?"
    ends = folded_ends(text)
    assert [word for word, _ in ends] == ["cafe", "14524", "naive"]
    assert [text.encode()[: end + 1].decode() for _, end in ends] == ["Café", "Café (1,452.4", "Café (1,452.4) naïve"]


@pytest.mark.slow
def test_the_log_tells_the_stages(runs: Path) -> None:
    lines = (runs / "reranker" / "log.jsonl").read_text().splitlines()
    assert {"judged", "pointed", "right"} <= set(json.loads(lines[-1]))
