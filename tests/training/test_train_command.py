"""``mmrr train`` as a command: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import sys

import pytest

from mmrr.training import finetune, loop
from mmrr.training.from_scratch import run as scratch
from tests.console import mmrr, refused
from tests.training.shared import GOOD, losses, reranking, toy, write_config, write_lines


def test_the_command_trains_and_resumes(pairs_folder, tmp_path, tiny_path):
    reranking(pairs_folder, tiny_path, steps=3, validation="pairs.jsonl")
    run = tmp_path / "run"
    command = ("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", run)
    result = mmrr(*command)
    assert result.stdout == f"{run / 'adapter'}\n"
    assert "12 pairs on 4 pages; band 2:3, exit 3, 100% of the tokens" in result.stderr
    assert "step 3 of 3  loss" in result.stderr
    assert {path.name for path in run.iterdir()} >= {"adapter", "curves.png", "log.jsonl", "run.json"}
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert {"step", "loss", "accuracy", "lr", "val_loss", "val_accuracy"} <= set(last)
    assert "has run all its steps; --steps N adds more" in mmrr(*command).stderr
    document = json.loads(mmrr(*command, "--steps", 4, "--json").stdout)
    assert document["result"] == str(run / "adapter")
    assert document["last"]["step"] == 4
    reranking(pairs_folder, tiny_path, steps=3, lr=2e-2)
    assert "was begun with lr = 0.01, now it is 0.02" in refused(*command)


def test_two_commands_in_one_run_folder_are_refused(pairs_folder, tmp_path, tiny_path):
    settings = tmp_path / "reranker.toml"
    settings.write_text(f'model = "{tiny_path}"\npairs = "{pairs_folder / "pairs.jsonl"}"\n')
    with loop.exclusive(tmp_path / "run"):
        line = refused("train", "reranker", "--config", settings, "--run-dir", tmp_path / "run")
    assert "another mmrr train is at work in" in line
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_command_refuses_in_one_line(pairs_folder, tmp_path, tiny_path):
    reranking(pairs_folder, tiny_path)
    command = ("--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "run")
    usage = mmrr("train", "judge", *command, code=2).stderr
    assert "'judge' is not one of 'reader'" in usage
    assert "Traceback" not in usage
    assert "a reader is trained from random init" in refused("train", "reader", *command)
    assert "cannot read" in refused(
        "train", "reranker", "--config", tmp_path / "no.toml", "--run-dir", tmp_path / "run"
    )
    (pairs_folder / "train.toml").write_text("model = ")
    assert "is not valid TOML" in refused("train", "reranker", *command)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_open_is_one_line(pairs_folder, tmp_path, tiny_path, workers):
    reranking(pairs_folder, tiny_path, workers=workers)
    (pairs_folder / "2.png").write_bytes(b"no image")
    result = mmrr("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "run", code=1)
    assert "2.png cannot be opened as an image" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_band_and_pairs_that_do_not_fit_are_refused(pairs_folder, tmp_path, tiny_path):
    command = ("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "run")
    reranking(pairs_folder, tiny_path, band="2:5", exit=2)
    assert "exit = 2 does not fit band 2:5; expected 3 to 6" in refused(*command)
    reranking(pairs_folder, tiny_path, band="2:9")
    assert "band 2:9 does not fit a model of 6 layers" in refused(*command)
    write_lines(pairs_folder / "pairs.jsonl", [GOOD])
    assert "all 1 pairs are relevant; a reranker needs pairs of both kinds" in refused(*command)


def test_after_ctrl_c_it_prints_how_to_resume(pairs_folder, tmp_path, tiny_path, monkeypatch):
    settings = reranking(pairs_folder, tiny_path, steps=6, save_every=2)
    whole = finetune.train_reranker

    def interrupted(*args):
        for record in whole(*args):
            yield record
            if record["step"] == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "train_reranker", interrupted)
    command = ("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "run")
    result = mmrr(*command, code=130)
    assert result.stdout == ""
    assert f"stopped; the state of step 2 is in {tmp_path / 'run'}; run the same command again" in result.stderr
    monkeypatch.setattr(finetune, "train_reranker", whole)
    mmrr(*command)
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert losses(logged) == losses(whole(settings, tmp_path / "whole"))


def test_a_config_with_documents_trains_from_random_init(tmp_path, monkeypatch):
    given = []

    def train_reader(settings, run):
        given.append(settings)
        yield from toy(run, settings.steps)

    monkeypatch.setattr(scratch, "train_reader", train_reader)
    path = write_config(tmp_path / "c.toml", documents=["texts.jsonl"], steps=20)
    result = mmrr("train", "reader", "--config", path, "--run-dir", tmp_path / "run")
    assert result.stdout == f"{tmp_path / 'run' / 'checkpoint'}\n"
    assert given[0].documents == (tmp_path / "texts.jsonl",)
    assert (tmp_path / "run" / "curves.png").is_file()


def test_without_matplotlib_the_run_ends_with_one_line(pairs_folder, tmp_path, tiny_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    reranking(pairs_folder, tiny_path, steps=1)
    result = mmrr("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "run")
    assert result.stdout == f"{tmp_path / 'run' / 'adapter'}\n"
    assert len([line for line in result.stderr.splitlines() if "pip install 'mmrr[train]'" in line]) == 1
