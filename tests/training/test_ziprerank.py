"""Fine-tuning ZipRerank: the published losses, and a training forward that equals the scorer; resumed runs.

Tolerance between the training forward and the scorer: |d logit| <= 1e-4 in float32.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import resolve
from mmrr.scorers.ziprerank import Prepare, Score, Scorer
from mmrr.training import config as configs
from mmrr.training import lora
from mmrr.training.data import passage_images
from mmrr.training.data.ranked_lists import RankedLists, ranking, read_lists
from mmrr.training.families import ziprerank
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.tiny import write_checkpoint
from tests.training.shared import LIST_QUERIES
from tests.training.shared import losses as loss_by_step

TOLERANCE = 1e-4
FULL = Score()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A model with separate output head and embeddings, like the published 8B model."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "zip", layers=3, seed=3, tie=False)


@pytest.fixture
def base(model_path, tmp_path):
    return resolve(str(model_path), None, HashCache(tmp_path / "hashes.json"))


def settings(folder, model, **values):
    """The config of a fine-tuning on the lists of ``folder``."""
    values = {"device": "cpu", "dtype": "float32", "workers": 0, "lr": 1e-2, "warmup": 0, "max_side": 128, **values}
    given = {"scorer": "ziprerank", "model": str(model), "lists": "lists.jsonl", **values}
    path = folder / "train.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    return configs.read(path, "reranker")


# Losses


def test_ranknet_as_published():
    assert ziprerank.ranknet(torch.tensor([2.0, 1.0, 0.0]), (0, 1, 2)).item() == pytest.approx(0.0662683, abs=1e-6)


def test_ranknet_takes_an_order_and_not_its_inverse():
    """(2, 0, 1) means that the third is best. Read as ranks it would mean that the second is best."""
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


def test_the_written_ranking_is_measured_on_its_own_tokens(base, lists_folder):
    """Against the cross-entropy of the whole sequence with the tokens before the answer left out."""
    options = settings(lists_folder, "m", stage=1)
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options.settings(), ziprerank.see_image)
    shown = RankedLists(read_lists(lists_folder / "lists.jsonl"), 0, 1, 20, True)(1)[0]
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
    assert (letters_first - logits[0, scorer.letters[: len(shown.pages)]]).abs().max() <= 1e-5  # the same position
    total = 10 * ziprerank.ranknet(letters_first, shown.ranking) + expected
    assert found["loss"].item() == pytest.approx(total.item(), abs=1e-4)


# Fine-tuning


def test_the_training_forward_gives_the_scorers_logits(base, lists_folder, page_images):
    options = settings(lists_folder, "m")
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    model = ziprerank.Ranker(scorer, scorer.backbone.text, options.settings(), ziprerank.see_image)
    images = [*page_images, passage_images.draw_passage("boats on the quay")]
    states = scorer.prepare(images, [None] * 5)
    for query in LIST_QUERIES:
        for items in ([0, 1, 2, 3, 4], [3, 1]):
            expected = scorer.logits(query, states, items, FULL)
            with torch.no_grad():
                found = model(query, [images[i] for i in items])
            assert (found - expected).abs().max() <= TOLERANCE
            assert expected.std() > 10 * TOLERANCE


def test_lora_learns_and_its_adapter_ranks_as_it_was_trained(base, lists_folder, tmp_path, model_path, page_images):
    options = settings(lists_folder, model_path, size=4, steps=4, validation="lists.jsonl")
    before = load_file(model_path / "model.safetensors")
    records = list(ziprerank.train(options, tmp_path / "run"))
    assert records[-1]["loss"] < records[0]["loss"]
    assert {"ranked", "written", "accuracy", "val_ranked", "val_accuracy"} <= set(records[-1])

    # The trained model, rebuilt from the run's state.
    scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
    adapted = lora.adapt(scorer.backbone, base, options.rank, options.alpha, scorer.backbone.n_layers, 1)
    model = ziprerank.Ranker(scorer, adapted, options.settings(), ziprerank.see_image)
    state = load_file(tmp_path / "run" / "state.safetensors")
    weights = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(weights) == trained
    assert all("lora_" in name and ".language_model.layers." in name for name in trained)
    model.load_state_dict(weights, strict=False)
    with torch.no_grad():
        found = model(LIST_QUERIES[0], page_images)

    loaded = resolve(str(tmp_path / "run" / configs.ADAPTER), None, HashCache(tmp_path / "h.json"))
    logits = []
    for one in (base, loaded):
        plain = Scorer(one, Prepare(128), CPU, torch.float32)
        logits.append(plain.logits(LIST_QUERIES[0], plain.prepare(page_images, [None] * 4), range(4), FULL))
    assert (logits[1] - found).abs().max() <= TOLERANCE
    assert (logits[0] - logits[1]).abs().max() > 100 * TOLERANCE
    after = scorer.backbone.model.state_dict()
    for name, value in before.items():
        inside = name if name in after else name.removesuffix(".weight") + ".base_layer.weight"
        assert torch.equal(after[inside], value), name


def test_recomputing_changes_no_gradient(base, lists_folder):
    found = []
    for recompute in (False, True):
        options = settings(lists_folder, "m", recompute=recompute)
        scorer = ziprerank.load_scorer(base, options, CPU, torch.float32)
        adapted = lora.adapt(scorer.backbone, base, 4, 8, scorer.backbone.n_layers, 0)
        model = ziprerank.Ranker(scorer, adapted, options.settings(), ziprerank.see_image)
        model.losses(RankedLists(read_lists(options.lists), 0, 2, 20, True)(0))["loss"].backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name), name
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*found, strict=True))


def test_a_resumed_run_repeats_the_losses_of_an_uninterrupted_one(lists_folder, tmp_path, model_path):
    options = settings(lists_folder, model_path, stage=1, accumulate=2, steps=5, save_every=2)
    whole = loss_by_step(ziprerank.train(options, tmp_path / "whole"))
    records = ziprerank.train(options, tmp_path / "cut")
    killed = [next(records) for _ in range(3)]  # the state of step 2 is the last on disk
    records.close()
    rest = loss_by_step(ziprerank.train(options, tmp_path / "cut"))
    assert list(rest) == [3, 4, 5]
    assert loss_by_step(killed) | rest == whole
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
        ({"keep": 0.5}, "has `keep`, which goes with `documents` alone"),
        ({"pretraining": 3}, "has `pretraining`, which goes with `documents` alone"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
        ({"model": "", "documents": "d"}, "has `lists`, which goes with `model` alone"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(lists_folder, values, problem):
    with pytest.raises(MmrrError) as error:
        settings(lists_folder, **{"model": "m", **values})
    assert problem in str(error.value)
