"""Training a small ZipRerank from random init: auxiliary losses by hand, the scorer's logits, resume, the command.

Tolerance between the training forward and the scorer: |d logit| <= 1e-4 in float32.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmrr import random_checkpoint
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers.ziprerank import Prepare, Score, Scorer
from mmrr.training import config as configs
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.ranked_lists import DrawnLists, ListSize
from mmrr.training.data.tower_features import TowerFeatures
from mmrr.training.families import ziprerank
from mmrr.training.families.ziprerank_aux import AuxiliaryLosses
from mmrr.training.families.ziprerank_config import RandomInitListsConfig
from mmrr.training.from_scratch import run as scratch
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import read_documents, split
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, write_documents
from tests.texts import write_texts
from tests.training.shared import tiny_shape

TOLERANCE = 1e-4
FULL = Score()
SHAPE = tiny_shape(4)
SMALL = 'documents = "texts.jsonl"\npool = "pool"\nworkers = 0\nreports = 2\nsave_every = 2\nheld_out = 0.0\n'


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Texts, a reader with a few thousand parameters, an untrained model whose tokenizer has the prompt's phrases."""
    folder = tmp_path_factory.mktemp("scratch")
    write_texts(folder / "texts.jsonl")
    (folder / "reader.toml").write_text(SMALL + "steps = 2\nletters = 1\nevaluate_every = 9\n" + SHAPE)
    list(scratch.train_reader(configs.read(folder / "reader.toml", "reader"), folder / "reader"))
    shape = configs.read(folder / "reader.toml", "reader").shape
    model = random_checkpoint.new_model(shape, phrases=ziprerank.phrases())
    random_checkpoint.save(model, folder / "wide", 64, torch.float32, ziprerank.phrases())
    return folder


def small(folder: Path, lines: str = "") -> RandomInitListsConfig:
    """The config of a small model."""
    own = 'scorer = "ziprerank"\nreader = "reader"\nsteps = 5\npretraining = 1\npretrained_layers = 1\n'
    own += "candidates = 4\nstrips = 0.6\n"
    (folder / "zip.toml").write_text(SMALL + own + lines + SHAPE)
    return configs.read(folder / "zip.toml", "reranker")


def test_a_small_model_needs_steps_and_two_layers_behind_the_pretrained_ones(runs):
    with pytest.raises(MmrrError, match="must set `steps`"):
        RandomInitListsConfig(scorer="ziprerank", documents=(runs / "texts.jsonl",))
    with pytest.raises(MmrrError, match="pretrained_layers = 3; expected 2 or less"):
        dataclasses.replace(small(runs), pretrained_layers=3)


def last_losses(records):
    return {record["step"]: record["loss"] for record in records if "ranked" in record}


@pytest.mark.slow
def test_a_small_model_is_trained_resumed_and_ranks_as_it_was_trained(runs, tmp_path, page_images):
    options = small(runs, "lm_weight = 0.5\nsize = 2\n")
    assert options.result == configs.CHECKPOINT
    whole = list(ziprerank.train(options, runs / "whole"))
    assert {"ranked", "written", "pointed", "gathered", "chosen", "named", "judged", "accuracy"} <= set(whole[-1])
    records = ziprerank.train(options, runs / "cut")
    killed = []
    for record in records:
        killed.append(record)
        if record["step"] == 4 and "ranked" in record:  # step 2 is saved, step 4 is not yet
            break
    records.close()
    rest = last_losses(ziprerank.train(options, runs / "cut"))
    assert list(rest) == [4, 5]
    assert last_losses(killed) | rest == last_losses(whole)

    path = runs / "whole" / configs.CHECKPOINT
    cut = load_file(runs / "cut" / configs.CHECKPOINT / "model.safetensors")
    assert all(torch.equal(value, cut[name]) for name, value in load_file(path / "model.safetensors").items())
    checkpoint = resolve(str(path), None, HashCache(tmp_path / "h.json"))
    scorer = Scorer(checkpoint, Prepare(max_side=0), CPU, torch.float32)
    states = scorer.prepare(page_images, [None] * 4)
    expected = scorer.logits("ferry of Lunna", states, range(4), FULL)

    # The trained model from the run's state, rounded like the checkpoint.
    state = load_file(runs / "whole" / "state.safetensors")
    trained = Scorer(
        resolve(str(runs / "whole" / "start"), None, HashCache(tmp_path / "h.json")), Prepare(0), CPU, torch.float32
    )
    model = ziprerank.Ranker(trained, trained.backbone.text, options.settings(), ziprerank.see_image)
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value.bfloat16())
        found = model("ferry of Lunna", page_images)
    assert (found - expected).abs().max() <= TOLERANCE
    assert expected.std() > 10 * TOLERANCE


def test_the_fixed_texts_of_the_prompt_are_a_few_tokens(runs):
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    before, question, after = scorer.segments("né", 12)
    assert len(before) == 3 + 3 + 1 + 12 + 1  # "user", opening, two digits, blank, middle, pictures, closing
    assert len(question) == 1 + 3 + 2
    assert len(after) == 1 + 3 * 12 + 4 + 1
    text = scorer.backbone.chat._plain.decode(before)
    assert "Picture 12 is passage [L].\n\nSearch Query:" in text


@pytest.mark.slow
def test_cells_look_at_the_query_words_that_they_show(runs):
    """The targets are the last bytes of the words; cells without a query word look at the instruction."""
    options = small(runs)
    make = drawn(runs, options)
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    backbone = scorer.backbone
    for step in range(4):
        for shown in make(step):
            before, question, after = scorer.segments(shown.query, len(shown.pages))
            visuals = [ziprerank.see_drawn(scorer, page) for page in shown.pages]
            ids = [*before, *question, *after]
            sequence = backbone.pages_sequence(ids, visuals, [None] * len(visuals))
            extra = AuxiliaryLosses(backbone, shown, 1, scorer.letters)
            extra.locate(sequence, visuals, [None] * len(visuals), len(before), len(sequence.embeddings) - 1)
            assert {one for one in extra.cells if one.words} <= set(shown.word_cells)
            for row, cell, wanted in zip(extra.rows, extra.cells, extra.targets, strict=True):
                assert torch.equal(sequence.embeddings[row], visuals[cell.page].tokens[cell.cell])
                places = wanted.nonzero().flatten().tolist()
                if not cell.words:
                    assert places == list(range(len(before)))
                    continue
                for place in places:
                    assert len(before) < place < len(before) + len(question)
                    written = backbone.chat._plain.decode(ids[len(before) : place + 1])
                    assert fold(written.split()[-1]) in cell.words
            mark = backbone.embed([backbone.config.vision_end_token_id])
            assert torch.equal(sequence.embeddings[extra.marks], mark.expand(len(visuals), -1))
            assert torch.equal(sequence.embeddings[extra.bracket], backbone.embed([scorer.bracket]))
            assert int(extra.relevant.sum()) == sum(len(visuals[page].tokens) + 1 for page in shown.relevant)
            assert sorted(shown.ranking) == list(range(len(shown.pages)))
            assert shown.relevant
            assert set(shown.ranking[: len(shown.relevant)]) == set(shown.relevant)


def test_the_answers_of_drawn_lists_are_at_every_letter(runs):
    make = drawn(runs, small(runs))
    firsts = {(len(shown.pages), shown.ranking[0]) for step in range(60) for shown in make(step)}
    assert {(4, place) for place in range(4)} <= firsts
    assert {n for n, _ in firsts} == {2, 3, 4}


def test_the_gathering_targets_are_the_cells_of_rare_words(runs):
    """Words on few pages, or the rarest word if a query has none. Other cells are not targets."""
    make = drawn(runs, small(runs))
    counts = make.page_counts
    make.rare_count = 1
    common = sorted(counts, key=lambda word: (-counts[word], word))[:2]
    once = next(word for word in sorted(counts) if counts[word] == 1)
    assert counts[common[1]] > 1
    assert make.rare_words({*common, once, "unheard"}) == {once, "unheard"}
    assert make.rare_words(common) == {min(common, key=lambda word: (counts[word], word))}
    assert make.rare_words(()) == set()
    gathered = 0
    for step in range(6):
        for shown in make(step):
            rare = make.rare_words({word for word in map(fold, shown.query.split()) if len(word) >= 3})
            assert shown.rare_words == rare
            for at, page in enumerate(shown.pages):
                cells = {cell for word, of in zip(page.folded, page.cells, strict=True) if word in rare for cell in of}
                held = [one for one in shown.word_cells if one.page == at and rare.intersection(one.words)]
                assert cells == {one.cell for one in held}
                gathered += len(cells)
    assert gathered


def drawn(folder: Path, options: RandomInitListsConfig) -> DrawnLists:
    """Lists of pages whose features are on disk."""
    documents, _ = split(read_documents(folder / "texts.jsonl"), options.held_out)
    pool = PagePool(folder / "pool", documents, options.seed)
    keys = [(report, number) for report in range(2) for number in range(pool.page_count(report))]
    wide = Scorer(resolve(str(folder / "wide"), None, HashCache(folder / "h.json")), Prepare(0), CPU, torch.float32)
    features = TowerFeatures(folder / "features", pool)
    for key in keys:
        features.make(wide.backbone, *key)
    return DrawnLists(features, keys, "0", ListSize(lists=2, candidates=4, strips=2))


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_the_attention_losses_equal_plain_attention(runs, keep):
    """Pointing, gathering and choosing against attention over the whole sequence, also with pruning; within 1e-4."""
    options = dataclasses.replace(small(runs), keep=keep)
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    backbone = scorer.backbone
    shown = drawn(runs, options)(0)[0]
    extra = AuxiliaryLosses(backbone, shown, options.pretrained_layers, scorer.letters)
    model = ziprerank.Ranker(scorer, backbone.text, options.settings(), ziprerank.see_drawn)
    given = {}
    add_attention = extra.add_attention

    def watch(layer, query, key):
        given[layer] = (query, key)
        add_attention(layer, query, key)

    extra.add_attention = watch
    with torch.no_grad():
        model._read(shown.query, shown.pages, (), extra)
    assert extra.pointed > 0
    for layer, rows, targets, found in (
        (options.pretrained_layers, extra.rows, extra.targets, extra.pointed),
        (options.pretrained_layers + 1, extra.marks, extra.holding, extra.gathered),
        (backbone.n_layers - 1, extra.bracket, extra.relevant, extra.chosen),
    ):
        query, key = given[layer]
        n = query.shape[1]
        logits = query[0] @ key[0].T / query.shape[-1] ** 0.5  # of two heads the first one is trained
        weights = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        expected = -(weights[rows] * targets).sum(-1).log().mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_training_keeps_the_tokens_that_the_scorer_keeps(runs, page_images):
    """With keep = 0.4 the letters' logits equal the scorer's with interaction=hidden, within 1e-4.

    The likeness loss is a softmax over a page's cells of the largest cosine to a state of the query.
    """
    options = dataclasses.replace(small(runs), keep=0.4)
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options.settings(), ziprerank.see_image)
    states = scorer.prepare(page_images[:3], [None] * 3)
    with torch.no_grad():
        trained = model("the ferry of Skarrow", page_images[:3])
    score = Score(keep=0.4, interaction="hidden")
    assert (trained - scorer.logits("the ferry of Skarrow", states, [0, 1, 2], score)).abs().max() <= 1e-4
    assert (trained - scorer.logits("the ferry of Skarrow", states, [0, 1, 2], Score())).abs().max() > 1e-4

    shown = next(one for step in range(9) for one in drawn(runs, options)(step) if one.rare_words and one.word_cells)
    extra = AuxiliaryLosses(scorer.backbone, shown, options.pretrained_layers, scorer.letters)
    before, question, after = scorer.segments(shown.query, len(shown.pages))
    scorer.backbone.text.requires_grad_(True)
    words = model._words(before, question)
    assert words.requires_grad
    assert (words - scorer.interacting(before, question, after, "hidden")).abs().max() <= 1e-4
    tokens = [ziprerank.see_drawn(scorer, page).tokens for page in shown.pages]
    extra.add_likeness([ziprerank.nearness(words, one) for one in tokens])
    expected = []
    for page, own in enumerate(tokens):
        cosines = F.cosine_similarity(words[:, None], own[None], dim=-1).amax(0)
        for word in shown.rare_words:
            cells = [one.cell for one in shown.word_cells if one.page == page and word in one.words]
            if cells:
                expected.append(-(20 * cosines).softmax(0)[cells].sum().log())
    assert extra.alike.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-4)


@pytest.mark.slow
def test_from_the_command_line_to_a_ranking(runs, tmp_path):
    small(runs)
    printed = mmrr("train", "reranker", "--config", runs / "zip.toml", "--run-dir", tmp_path / "run", "--json").stdout
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer", "ziprerank", "--scorer-model", json.loads(printed)["result"])
    mmrr("precache", *work, *model, *FP32)
    assert json.loads(mmrr("rerank", "the thesis", *work, "--json").stdout)
    stored = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["ziprerank"]
    assert stored == {"max_side": 0, "window": 4, "keep": 1.0, "interaction": "input"}
