"""Configs of ``mmrr train``: read strictly; former names of keys keep working with a notice."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.training import config, families
from mmrr.training.families import ziprerank_config
from tests.console import mmrr
from tests.training.shared import toy, write_config

RUNS = Path(__file__).parents[2] / "runs"
#: Keys of experiments that were not kept: no version reads them any more.
RETIRED = {"parts", "hardest_of", "placing"}
#: For each former name of a key a config that has the key: task, other keys, the value.
FORMER = {
    "held": ("embedder", {"documents": "d", "embedder": "e"}, 2.0),
    "spelling": ("reranker", {"documents": "d"}, 7),
    "spelled": ("reranker", {"documents": "d"}, 1),
}


def test_the_defaults_are_those_of_the_paper(tmp_path):
    made = config.read(write_config(tmp_path / "c.toml", model="owner/name", pairs="p/pairs.jsonl"), "reranker")
    assert (made.rank, made.alpha, made.lr, made.warmup, made.band, made.model) == (
        16,
        32,
        1e-4,
        0.03,
        "auto",
        "owner/name",
    )
    assert made.pairs == tmp_path / "p" / "pairs.jsonl"  # from the config's folder, not from the working directory
    schedule = made.schedule(100)
    assert [round(schedule.rate(step) / 1e-4, 3) for step in (0, 2, 3)] == [0.333, 1.0, 1.0]
    assert schedule.rate(99) < 1e-7
    assert schedule.rate(51) == pytest.approx(0.5e-4, abs=2e-6)


def test_a_model_that_is_a_folder_next_to_the_config_is_that_folder(tmp_path):
    (tmp_path / "model").mkdir()
    made = config.read(write_config(tmp_path / "c.toml", model="model", pairs="x"), "embedder")
    assert made.model == str(tmp_path / "model")
    assert made.temperature == 0.05


def test_a_config_for_random_init(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('documents = "texts.jsonl"\nsteps = 7\nlr = 1\n[shape]\nlayers = 3\ndeepstack = [0, 1]\n')
    made = config.read(path, "reader")
    assert made.documents == (tmp_path / "texts.jsonl",)
    assert (made.shape.layers, made.shape.deepstack, made.shape.hidden) == (3, (0, 1), 256)
    assert (made.schedule().steps, made.schedule().lr, made.held_out) == (7, 1.0, 0.1)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"model": "m", "pairs": "p", "rnak": 3}, "unknown key rnak; valid: model, revision, pairs,"),
        ({"model": "m"}, "no key `pairs`, and it has no default"),
        ({"pairs": "p"}, "neither of `model` and `documents`"),
        ({"model": "m", "documents": "d"}, "both of `model` and `documents`"),
        ({"documents": "d", "rank": 3}, "unknown key rank"),
        ({"model": "m", "pairs": "p", "temperature": 0.1}, "unknown key temperature"),  # a key of the embedder
        ({"model": "m", "pairs": "p", "lr": "high"}, "lr = 'high'; expected a number"),
        ({"model": "m", "pairs": "p", "rank": 1.5}, "rank = 1.5; expected a whole number"),
        ({"model": "m", "pairs": "p", "rank": True}, "expected a whole number"),
        ({"model": "m", "pairs": "p", "recompute": 1}, "expected true or false"),
        ({"model": "m", "pairs": "p", "lr": 0}, "expected a number above 0"),
        ({"model": "m", "pairs": "p", "pages": 0}, "pages = 0; expected 1 or more"),
        ({"model": "m", "pairs": "p", "keep": 1.5, "embedder": "e"}, "keep = 1.5; expected a share"),
        ({"model": "m", "pairs": "p", "keep": 0.5}, "needs an `embedder`"),
        ({"model": "m", "pairs": "p", "dtype": "float16"}, "dtype = 'float16'"),
    ],
)
def test_an_invalid_config_is_refused_in_one_line(tmp_path, values, problem):
    path = write_config(tmp_path / "c.toml", **values)
    with pytest.raises(MmrrError) as error:
        config.read(path, "reranker")
    assert problem in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "key"),
    [("reader", "pages"), ("reader", "dim"), ("embedder", "ranking"), ("embedder", "letters"), ("reranker", "dim")],
)
def test_a_key_of_another_task_is_refused(tmp_path, task, key):
    path = write_config(tmp_path / "c.toml", documents="d", **{key: 2})
    with pytest.raises(MmrrError, match=f"unknown key {key}; valid: documents,"):
        config.read(path, task)


def test_the_key_scorer_belongs_to_the_reranker(tmp_path):
    path = write_config(tmp_path / "c.toml", model="m", pairs="p", scorer="minireranker")
    assert config.read(path, "reranker").model == "m"
    with pytest.raises(MmrrError, match="unknown key scorer"):
        config.read(path, "embedder")


def test_an_unknown_scorer_is_refused_with_the_known_ones(tmp_path):
    path = write_config(tmp_path / "c.toml", documents="d", scorer="bert")
    with pytest.raises(
        MmrrError, match="no training for scorer = 'bert'; expected minireranker, edje, kalm, ziprerank"
    ):
        config.read(path, "reranker")
    assert {families.load(name).__name__.rpartition(".")[2] for name in families.NAMES} == set(families.NAMES)


# Former names


def test_every_former_name_is_tested():
    assert set(FORMER) == set(config.ALIASES)


@pytest.mark.parametrize("old", FORMER)
def test_a_former_name_of_a_key_is_accepted_with_one_line(tmp_path, old):
    task, others, value = FORMER[old]
    new = config.ALIASES[old]
    path = write_config(tmp_path / "c.toml", **others, **{old: value})
    lines = []
    read = config.read(path, task, lines.append)
    assert getattr(read, new) == value
    assert lines == [f"{path}: `{old}` is now called `{new}`"]
    assert read == config.read(write_config(path, **others, **{new: value}), task, lines.append)
    assert len(lines) == 1
    write_config(path, **others, **{old: value, new: value})
    with pytest.raises(
        MmrrError, match=re.escape(f"has both `{old}` and `{new}`, two names of one key; remove `{old}`")
    ):
        config.read(path, task)


@pytest.mark.parametrize("scorer", ["edje", "ziprerank"])
def test_a_former_name_works_for_the_other_families(tmp_path, scorer):
    required = {"vision": "v"} if scorer == "edje" else {"steps": 3, "reader": "r"}
    path = write_config(tmp_path / "c.toml", scorer=scorer, documents="d", spelling=9, **required)
    lines = []
    assert config.read(path, "reranker", lines.append).pretraining == 9
    assert lines == [f"{path}: `spelling` is now called `pretraining`"]


def test_a_former_name_of_another_tasks_key_is_unknown(tmp_path):
    path = write_config(tmp_path / "c.toml", documents="d", held=1.0)
    with pytest.raises(MmrrError, match=re.escape("unknown key held; valid: documents,")):
        config.read(path, "reader")


def test_a_run_begun_under_a_former_name_is_resumed(tmp_path):
    """``run.json`` of an old run has ``held``: the same value is accepted, another one is refused."""
    path = write_config(tmp_path / "c.toml", documents="d", embedder="e", attention_distillation=2.0)
    settings = config.read(path, "embedder")
    run = tmp_path / "run"
    toy(run, steps=5)  # leaves a saved state
    config.begin(run, "embedder", settings)
    stored = json.loads((run / "run.json").read_text())
    stored["held"] = stored.pop("attention_distillation")
    (run / "run.json").write_text(json.dumps(stored))
    config.begin(run, "embedder", settings)
    (run / "run.json").write_text(json.dumps(stored))
    with pytest.raises(MmrrError, match=r"was begun with attention_distillation = 2\.0, now it is 3\.0"):
        config.begin(run, "embedder", dataclasses.replace(settings, attention_distillation=3.0))


def test_the_command_prints_the_notice_on_stderr(tmp_path):
    path = write_config(tmp_path / "c.toml", documents="nowhere.jsonl", reader="r", spelled=1)
    result = mmrr("train", "embedder", "--config", path, "--run-dir", tmp_path / "run", code=1)
    assert f"{path}: `spelled` is now called `pretrained_layers`" in result.stderr
    assert result.stdout == ""


# Configs of the repository


def committed():
    """Every config in ``runs/`` with its task."""
    found = []
    for path in sorted(RUNS.glob("*/*.toml")):
        name = path.parent.name.partition("-")[0]
        task = name if name in config.TASKS else "reranker"
        found.append(pytest.param(path, task, id=f"{path.parent.name}-{path.stem}"))
    return found


@pytest.mark.parametrize(("path", "task"), committed())
def test_a_config_of_an_earlier_run_is_still_read(tmp_path, path, task):
    lines = [line for line in path.read_text().splitlines() if line.split(" ")[0] not in RETIRED]
    copy = tmp_path / "c.toml"
    copy.write_text("\n".join(lines))
    assert config.read(copy, task).steps >= 1


def test_the_two_trainings_of_ziprerank_share_no_other_key():
    """A key of the other training is refused by name, so the two configs must differ where they should."""
    names = [
        {item.name for item in dataclasses.fields(kind)}
        for kind in (ziprerank_config.FinetuneListsConfig, ziprerank_config.RandomInitListsConfig)
    ]
    assert names[0] & names[1] == {item.name for item in dataclasses.fields(ziprerank_config.ListsConfig)}
