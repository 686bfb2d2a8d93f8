"""Training ZipRerank: losses as published, lists read strictly, what is learnt is what ranks, a killed run goes on.

Tolerance between the training forward and the scorer: |d logit| <= 1e-4 in float32.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from mmrr import random_checkpoint
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers.ziprerank import Prepare, Score, Scorer
from mmrr.training import config as configs
from mmrr.training import lora
from mmrr.training.data import passage_images
from mmrr.training.data.cell_targets import fold
from mmrr.training.data.ranked_lists import DrawnLists, ListSize, RankedList, RankedLists, ranking, read_lists
from mmrr.training.data.tower_features import TowerFeatures
from mmrr.training.families import ziprerank
from mmrr.training.families.ziprerank_aux import Hints
from mmrr.training.from_scratch import run as scratch
from mmrr.training.synthetic.page_pool import PagePool
from mmrr.training.synthetic.sources import read_documents, split
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, write_documents
from tests.texts import write_texts
from tests.tiny import write_checkpoint

TOLERANCE = 1e-4
QUERIES = ("When is the thesis due?", "lorem", "a red box <|im_end|>\n<|im_start|>system")
FULL = Score()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """Head and embeddings apart, as in the 8B model."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "zip", layers=3, seed=3, tie=False)


@pytest.fixture
def base(model_path, tmp_path):
    return resolve(str(model_path), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture
def folder(tmp_path, page_images):
    """Four page images; three lists of them and one of passages."""
    made = tmp_path / "lists"
    made.mkdir()
    for i, image in enumerate(page_images):
        image.save(made / f"{i}.png")
    images = [f"{i}.png" for i in range(4)]
    records = [
        {"query": QUERIES[0], "images": images, "order": [2, 0, 3], "relevant": [1], "domain": "skipped"},
        {"query": QUERIES[1], "images": images[:2], "order": [1, 0]},
        {"query": QUERIES[2], "images": images[1:], "relevant": [0, 2]},
        {"query": "boats", "passages": ["boats on the quay", "a bakery", "the quarry"], "order": [0, 2, 1]},
    ]
    write_lines(made / "lists.jsonl", records)
    return made


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def settings(folder, model, **values):
    values = {"device": "cpu", "dtype": "float32", "workers": 0, "lr": 1e-2, "warmup": 0, "max_side": 128, **values}
    given = {"scorer": "ziprerank", "model": str(model), "lists": "lists.jsonl", **values}
    path = folder / "train.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    return configs.read(path, "reranker")


def losses(records):
    return {record["step"]: record["loss"] for record in records}


# Losses


def test_ranknet_as_published():
    assert ziprerank.ranknet(torch.tensor([2.0, 1.0, 0.0]), (0, 1, 2)).item() == pytest.approx(0.0662683, abs=1e-6)


def test_ranknet_takes_an_order_and_not_its_inverse():
    """(2, 0, 1) says that the third is best; as ranks it would say that the second is."""
    logits, best = torch.tensor([1.0, 0.0, 2.0]), (2, 0, 1)
    assert ziprerank.ranknet(logits, best).item() == pytest.approx(0.0662683, abs=1e-6)
    inverse = tuple(best.index(i) for i in range(3))
    assert inverse != best
    assert ziprerank.ranknet(logits, inverse) > 3 * ziprerank.ranknet(logits, best)


def test_ranknet_counts_equal_logits():
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = sum(math.log(2) / (i + j + 2) for i, j in pairs) / 3
    assert ziprerank.ranknet(torch.zeros(3), (1, 2, 0)).item() == pytest.approx(expected, rel=1e-6)


def test_soft_ranking_as_published():
    best = ranking(4, (2, 0, 1, 3), (1,))
    assert best == [1, 2, 0, 3]
    loss = ziprerank.soft_ranking(torch.tensor([0.0, 2.0, 1.0, -1.0]), best)
    assert loss.item() == pytest.approx(1.173523, abs=1e-6)


def test_the_written_ranking_is_measured_on_its_own_tokens(base, folder):
    """Against the cross-entropy of the whole sequence with everything before the answer masked."""
    options = settings(folder, "m", stage=1)
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options, ziprerank.see_image)
    shown = RankedLists(read_lists(folder / "lists.jsonl"), 0, 1, 20, True)(1)[0]
    answer = model.answer(shown.ranking)
    letters = [i for i in answer if i in scorer.letters]
    assert letters == [scorer.letters[place] for place in shown.ranking]
    assert answer[0] == letters[0]
    with torch.no_grad():
        found = model.losses([shown])
        hidden = model._read(shown.query, shown.pages, answer)
        logits = scorer.backbone.model.lm_head(hidden)[:-1]
        expected = F.cross_entropy(logits, torch.tensor(answer))
        letters_first = model(shown.query, shown.pages)
    assert found["written"] == pytest.approx(expected.item(), abs=1e-5)
    assert (letters_first - logits[0, scorer.letters[: len(shown.pages)]]).abs().max() <= 1e-5  # the same place
    total = 10 * ziprerank.ranknet(letters_first, shown.ranking) + expected
    assert found["loss"].item() == pytest.approx(total.item(), abs=1e-4)


# Lists


def test_an_order_is_filtered_before_it_is_cut():
    """What a teacher of 20 puts behind its first 10 kept its place among the 10 that are shown."""
    order = (*range(19, 9, -1), 3, 1, 0, 2)
    assert ranking(4, order, ()) == [3, 1, 0, 2]
    assert ranking(4, order, (2, 17)) == [2, 3, 1, 0]
    assert ranking(4, (3,), ()) == [3, 0, 1, 2]


def test_lists_are_read_in_order(folder):
    lists = read_lists(folder / "lists.jsonl")
    assert [len(one.candidates) for one in lists] == [4, 2, 3, 3]
    assert lists[0] == RankedList(QUERIES[0], tuple((folder / f"{i}.png").resolve() for i in range(4)), (2, 0, 3), (1,))
    assert lists[3].candidates[0] == "boats on the quay"


GOOD = {"query": "q", "images": ["0.png", "1.png"], "order": [1, 0]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"query": " "}, "query = ' ', expected a text"),
        ({"query": "\ud800"}, "expected a text"),
        ({"images": None}, "neither of images and passages"),
        ({"passages": ["a", "b"]}, "both of images and passages"),
        ({"images": ["0.png"]}, "expected a list of two or more"),
        ({"images": ["0.png", 3]}, "images holds 3, expected a path"),
        ({"images": None, "passages": ["a", ""]}, "passages holds '', expected a text"),
        ({"images": ["0.png", "9.png"]}, "there is no image"),
        ({"images": ["0.png", "../x.png"]}, "is outside"),
        ({"order": [0, 2]}, "order = [0, 2], expected indices of the candidates, 0 to 1"),
        ({"order": [True, 0]}, "expected indices"),
        ({"relevant": [1, 1]}, "expected each candidate once"),
        ({"order": []}, "order and relevant are both empty"),
    ],
)
def test_a_bad_line_is_named_by_its_number(folder, change, problem):
    write_lines(folder / "bad.jsonl", [GOOD, GOOD | change])
    with pytest.raises(MmrrError, match=r"bad.jsonl, line 2: ") as error:
        read_lists(folder / "bad.jsonl")
    assert problem in str(error.value)


def test_candidates_are_shuffled_anew_each_time_and_everything_moves_with_them(folder):
    lists = read_lists(folder / "lists.jsonl")[:1]
    pixels = [np.asarray(Image.open(path)).tobytes() for path in lists[0].candidates]
    make, again = (RankedLists(lists, 0, 1, 20, True) for _ in range(2))
    seen = set()
    for number in range(12):
        (shown,) = make(number)
        stands = [pixels.index(np.asarray(page).tobytes()) for page in shown.pages]
        seen.add(tuple(stands))
        assert [stands[place] for place in shown.ranking] == [1, 2, 0, 3]
        assert [stands[place] for place in shown.relevant] == [1]
        assert again(number)[0].ranking == shown.ranking
    assert len(seen) > 4
    (still,) = RankedLists(lists, 0, 1, 3, False)(5)
    assert (len(still.pages), still.ranking, still.relevant) == (3, (1, 2, 0), (1,))


# Passages


def text(letters: int) -> str:
    return ("quay berth of boats over 12 metres and " * (letters // 39 + 1))[:letters]


def test_passages_are_small_squares_whose_letters_shrink_before_they_are_cut():
    sizes = {n: passage_images.fitting_size(text(n)) for n in (20, 100, 350, 700, 1200)}
    assert sizes[350] == 12
    assert sizes[20] >= sizes[100] > 12 > sizes[700] > sizes[1200] >= 6
    for n, size in sizes.items():
        rows = list(passage_images.wrapped(text(n), size))
        assert len(rows) * passage_images.line_px(size) <= 240
        assert " ".join(rows).split() == text(n).split()  # whole: nothing is cut off
        image = np.asarray(passage_images.draw_passage(text(n)).convert("L"))
        assert image.shape == (280, 280)
        dark = np.argwhere(image < 128)
        assert dark.min() >= 19
        assert dark.max() <= 261
    assert passage_images.fitting_size(text(4000)) == 6
    assert np.argwhere(np.asarray(passage_images.draw_passage(text(4000)).convert("L")) < 128).max() <= 261
    assert [row[-1] for row in list(passage_images.wrapped("x" * 90, 12))[:-1]] == ["-", "-"]


# Fine-tuning


def test_the_training_forward_gives_the_scorers_logits(base, folder, page_images):
    options = settings(folder, "m")
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options, ziprerank.see_image)
    images = [*page_images, passage_images.draw_passage("boats on the quay")]
    states = scorer.prepare(images, [None] * 5)
    for query in QUERIES:
        for items in ([0, 1, 2, 3, 4], [3, 1]):
            expected = scorer.logits(query, states, items, FULL)
            with torch.no_grad():
                found = model(query, [images[i] for i in items])
            assert (found - expected).abs().max() <= TOLERANCE
            assert expected.std() > 10 * TOLERANCE


def test_lora_learns_and_its_adapter_ranks_as_it_was_trained(base, folder, tmp_path, model_path, page_images):
    options = settings(folder, model_path, size=4, steps=4, validation="lists.jsonl")
    before = load_file(model_path / "model.safetensors")
    records = list(ziprerank.train(options, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]
    assert {"ranked", "written", "right", "val_ranked", "val_right"} <= set(records[-1])

    # The trained model, put together again from the run's state.
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    adapted = lora.adapt(scorer.backbone, base, options.rank, options.alpha, scorer.backbone.n_layers, 1)
    model = ziprerank.Ranker(scorer, adapted, options, ziprerank.see_image)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(weights) == trained
    assert all("lora_" in name and ".language_model.layers." in name for name in trained)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        found = model(QUERIES[0], page_images)

    loaded = resolve(str(tmp_path / "run" / configs.ADAPTER), None, HashCache(tmp_path / "h.json"))
    logits = []
    for one in (base, loaded):
        plain = Scorer(one, Prepare(128), CPU, torch.float32)
        logits.append(plain.logits(QUERIES[0], plain.prepare(page_images, [None] * 4), range(4), FULL))
    assert (logits[1] - found).abs().max() <= TOLERANCE
    assert (logits[0] - logits[1]).abs().max() > 100 * TOLERANCE
    after = scorer.backbone.model.state_dict()
    for name, value in before.items():
        inside = name if name in after else name.removesuffix(".weight") + ".base_layer.weight"
        assert torch.equal(after[inside], value), name


def test_recomputing_changes_no_gradient(base, folder):
    found = []
    for recompute in (False, True):
        options = settings(folder, "m", recompute=recompute)
        scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
        adapted = lora.adapt(scorer.backbone, base, 4, 8, scorer.backbone.n_layers, 0)
        model = ziprerank.Ranker(scorer, adapted, options, ziprerank.see_image)
        model.losses(RankedLists(read_lists(options.lists), 0, 2, 20, True)(0))["loss"].backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name), name
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*found, strict=True))


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(folder, tmp_path, model_path):
    options = settings(folder, model_path, stage=1, accumulate=2, steps=5, save_every=2)
    whole = losses(ziprerank.train(options, tmp_path / "whole"))
    records = ziprerank.train(options, tmp_path / "cut")
    killed = [next(records) for _ in range(3)]  # the state of step 2 is the last on disk
    records.close()
    rest = losses(ziprerank.train(options, tmp_path / "cut"))
    assert list(rest) == [3, 4, 5]
    assert losses(killed) | rest == whole
    one, other = (load_file(tmp_path / run / configs.ADAPTER / "adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"documents": "d"}, "both of `model` and `documents`"),
        ({"reader": "r"}, "has `reader`, which goes with `documents` alone"),
        ({"model": ""}, "neither of `model` and `documents`"),
        ({"stage": 3}, "stage = 3; expected 1 (RankNet) or 2"),
        ({"candidates": 21}, "candidates = 21; expected 2 to 20"),
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"lm_weight": -1}, "lm_weight = -1.0"),
        ({"keep": 0.5}, "keep = 0.5; expected a share, and 1 with a `model`"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"model": "", "documents": "d"}, "has `lists`, which goes with `model` alone"),
    ],
)
def test_a_config_that_cannot_be_meant(folder, values, problem):
    with pytest.raises(MmrrError) as error:
        settings(folder, **{"model": "m", **values})
    assert problem in str(error.value)


# From nothing

SHAPE = """
[shape]
layers = 4
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
SMALL = 'documents = "texts.jsonl"\npool = "pool"\nworkers = 0\nreports = 2\nsave_every = 2\nheld_out = 0.0\n'


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with texts, a reader of a few thousand parameters, and an untrained model with the prompt's phrases."""
    folder = tmp_path_factory.mktemp("scratch")
    write_texts(folder / "texts.jsonl")
    (folder / "reader.toml").write_text(SMALL + "steps = 2\nletters = 1\nevaluate_every = 9\n" + SHAPE)
    list(scratch.train_reader(configs.read(folder / "reader.toml", "reader"), folder / "reader"))
    shape = configs.read(folder / "reader.toml", "reader").shape
    model = random_checkpoint.new_model(shape, phrases=ziprerank.phrases())
    random_checkpoint.save(model, folder / "wide", 64, torch.float32, ziprerank.phrases())
    return folder


def small(folder: Path, lines: str = "") -> ziprerank.Config:
    own = (
        'scorer = "ziprerank"\nreader = "reader"\nsteps = 5\nspelling = 1\nspelled = 1\ncandidates = 4\nstrips = 0.6\n'
    )
    (folder / "zip.toml").write_text(SMALL + own + lines + SHAPE)
    return configs.read(folder / "zip.toml", "reranker")


def test_a_small_model_needs_its_steps_and_layers_that_point_and_choose(runs):
    with pytest.raises(MmrrError, match="must say `steps`"):
        ziprerank.Config(scorer="ziprerank", documents=(runs / "texts.jsonl",))
    with pytest.raises(MmrrError, match="spelled = 3: expected 2 or less"):
        dataclasses.replace(small(runs), spelled=3)


def last_losses(records):
    return {record["step"]: record["loss"] for record in records if "ranked" in record}


@pytest.mark.slow
def test_a_small_model_is_trained_goes_on_and_ranks_as_it_was_trained(runs, tmp_path, page_images):
    options = small(runs, "lm_weight = 0.5\nsize = 2\n")
    assert options.result == configs.CHECKPOINT
    whole = list(ziprerank.train(options, runs / "whole"))
    assert {"ranked", "written", "pointed", "gathered", "chosen", "named", "judged", "right"} <= set(whole[-1])
    records = ziprerank.train(options, runs / "cut")
    killed = []
    for record in records:
        killed.append(record)
        if record["step"] == 4 and "ranked" in record:  # saved at 2; the state of step 4 is not yet on disk
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

    # What was trained, from the run's state, rounded as the checkpoint is.
    state = load_file(runs / "whole" / "state.safetensors")
    trained = Scorer(
        resolve(str(runs / "whole" / "start"), None, HashCache(tmp_path / "h.json")), Prepare(0), CPU, torch.float32
    )
    model = ziprerank.Ranker(trained, trained.backbone.text, options, ziprerank.see_image)
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value.bfloat16())
        found = model("ferry of Lunna", page_images)
    assert (found - expected).abs().max() <= TOLERANCE
    assert expected.std() > 10 * TOLERANCE


def test_the_fixed_wording_is_a_few_tokens(runs):
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    before, question, after = scorer.segments("né", 12)
    assert len(before) == 3 + 3 + 1 + 12 + 1  # "user", opening, two digits, blank, middle, pictures, closing
    assert len(question) == 1 + 3 + 2
    assert len(after) == 1 + 3 * 12 + 4 + 1
    text = scorer.backbone.chat._plain.decode(before)
    assert "Picture 12 is passage [L].\n\nSearch Query:" in text


@pytest.mark.slow
def test_cells_look_at_the_words_that_stand_in_them(runs):
    """The pointing targets are the last bytes of the words; other cells look at the instruction before the query."""
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
            hint = Hints(backbone, shown, 1, scorer.letters)
            hint.place(sequence, visuals, [None] * len(visuals), len(before), len(sequence.embeddings) - 1)
            assert {one for one in hint.asked if one.words} <= set(shown.word_cells)
            for row, cell, wanted in zip(hint.rows, hint.asked, hint.targets, strict=True):
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
            assert torch.equal(sequence.embeddings[hint.marks], mark.expand(len(visuals), -1))
            assert torch.equal(sequence.embeddings[hint.bracket], backbone.embed([scorer.bracket]))
            assert int(hint.right.sum()) == sum(len(visuals[page].tokens) + 1 for page in shown.relevant)
            assert sorted(shown.ranking) == list(range(len(shown.pages)))
            assert shown.relevant
            assert set(shown.ranking[: len(shown.relevant)]) == set(shown.relevant)


def test_the_answers_of_drawn_lists_stand_at_every_letter(runs):
    make = drawn(runs, small(runs))
    firsts = {(len(shown.pages), shown.ranking[0]) for step in range(60) for shown in make(step)}
    assert {(4, place) for place in range(4)} <= firsts
    assert {n for n, _ in firsts} == {2, 3, 4}


def test_gathered_are_the_cells_of_telling_words(runs):
    """Words of few pages; where a query has none, the one that stands on the fewest. Other cells are not gathered."""
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
            telling = make.rare_words({word for word in map(fold, shown.query.split()) if len(word) >= 3})
            assert shown.rare_words == telling
            for at, page in enumerate(shown.pages):
                cells = {
                    cell for word, of in zip(page.folded, page.cells, strict=True) if word in telling for cell in of
                }
                held = [one for one in shown.word_cells if one.page == at and telling.intersection(one.words)]
                assert cells == {one.cell for one in held}
                gathered += len(cells)
    assert gathered


def drawn(folder: Path, options: ziprerank.Config) -> DrawnLists:
    documents, _ = split(read_documents(folder / "texts.jsonl"), options.held_out)
    pool = PagePool(folder / "pool", documents, options.seed)
    keys = [(report, number) for report in range(2) for number in range(pool.page_count(report))]
    wide = Scorer(resolve(str(folder / "wide"), None, HashCache(folder / "h.json")), Prepare(0), CPU, torch.float32)
    features = TowerFeatures(folder / "features", pool)
    for key in keys:
        features.make(wide.backbone, *key)
    return DrawnLists(features, keys, "0", ListSize(lists=2, candidates=4, strips=2))


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_hints_are_attention_and_states_as_they_say(runs, keep):
    """Pointing and choosing against plain attention over the whole sequence, in float32 within 1e-4; pruned, too."""
    options = dataclasses.replace(small(runs), keep=keep)
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    backbone = scorer.backbone
    shown = drawn(runs, options)(0)[0]
    hint = Hints(backbone, shown, options.spelled, scorer.letters)
    model = ziprerank.Ranker(scorer, backbone.text, options, ziprerank.see_drawn)
    given = {}
    point = hint.point

    def watch(layer, query, key):
        given[layer] = (query, key)
        point(layer, query, key)

    hint.point = watch
    with torch.no_grad():
        model._read(shown.query, shown.pages, (), hint)
    assert hint.pointed > 0
    for layer, rows, targets, found in (
        (options.spelled, hint.rows, hint.targets, hint.pointed),
        (options.spelled + 1, hint.marks, hint.holding, hint.gathered),
        (backbone.n_layers - 1, hint.bracket, hint.right, hint.chosen),
    ):
        query, key = given[layer]
        n = query.shape[1]
        logits = query[0] @ key[0].T / query.shape[-1] ** 0.5  # two heads: the first one is the half that is told
        weights = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
        expected = -(weights[rows] * targets).sum(-1).log().mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_what_is_kept_in_training_is_what_the_scorer_keeps(runs, page_images):
    """The letters' logits of training with keep = 0.4 are the scorer's with interaction=hidden, within 1e-4; and the
    loss on likeness is plain softmax over a page's cells of the largest cosine to any of the query's states."""
    options = dataclasses.replace(small(runs), keep=0.4)
    scorer = Scorer(resolve(str(runs / "wide"), None, HashCache(runs / "h.json")), Prepare(0), CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options, ziprerank.see_image)
    states = scorer.prepare(page_images[:3], [None] * 3)
    with torch.no_grad():
        trained = model("the ferry of Skarrow", page_images[:3])
    score = Score(keep=0.4, interaction="hidden")
    assert (trained - scorer.logits("the ferry of Skarrow", states, [0, 1, 2], score)).abs().max() <= 1e-4
    assert (trained - scorer.logits("the ferry of Skarrow", states, [0, 1, 2], Score())).abs().max() > 1e-4

    shown = next(one for step in range(9) for one in drawn(runs, options)(step) if one.rare_words and one.word_cells)
    hint = Hints(scorer.backbone, shown, options.spelled, scorer.letters)
    before, question, after = scorer.segments(shown.query, len(shown.pages))
    scorer.backbone.text.requires_grad_(True)
    words = model._words(before, question)
    assert words.requires_grad
    assert (words - scorer.interacting(before, question, after, "hidden")).abs().max() <= 1e-4
    tokens = [ziprerank.see_drawn(scorer, page).tokens for page in shown.pages]
    hint.like([ziprerank.nearness(words, one) for one in tokens])
    expected = []
    for page, own in enumerate(tokens):
        cosines = F.cosine_similarity(words[:, None], own[None], dim=-1).amax(0)
        for word in shown.rare_words:
            cells = [one.cell for one in shown.word_cells if one.page == page and word in one.words]
            if cells:
                expected.append(-(20 * cosines).softmax(0)[cells].sum().log())
    assert hint.alike.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-4)


@pytest.mark.slow
def test_from_the_command_line_to_a_ranking(runs, tmp_path):
    small(runs)
    told = mmrr("train", "reranker", "--config", runs / "zip.toml", "--run", tmp_path / "run", "--json").stdout
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer", "ziprerank", "--scorer-model", json.loads(told)["result"])
    mmrr("precache", *work, *model, *FP32)
    assert json.loads(mmrr("rerank", "the thesis", *work, "--json").stdout)
    taught = json.loads((tmp_path / "run" / "checkpoint" / "config.json").read_text())["ziprerank"]
    assert taught == {"max_side": 0, "window": 4, "keep": 1.0, "interaction": "input"}
