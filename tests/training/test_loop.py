"""The training loop, its run folder and its process group, on networks with a few weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmrr.errors import MmrrError
from mmrr.plots import draw_curves
from mmrr.training import loop
from mmrr.training.distributed import ProcessGroup, is_main_process, join, placed, world_size
from mmrr.types import KeptTokens
from tests.conftest import CPU
from tests.console import mmrr
from tests.training.shared import losses, reranking, toy


def test_a_resumed_loop_repeats_its_losses_in_bfloat16(tmp_path):
    whole = losses(toy(tmp_path / "a", log_every=1))
    cut = losses(toy(tmp_path / "b", stop=13, log_every=1)) | losses(toy(tmp_path / "b", log_every=1))
    assert cut == whole
    assert min(whole.values()) < whole[1]


def test_every_saved_state_ends_a_record(tmp_path):
    """The means in the log are then the same, wherever a run was interrupted."""
    whole = losses(toy(tmp_path / "a", log_every=3))
    assert list(whole) == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    toy(tmp_path / "b", stop=12, log_every=3)
    assert losses(toy(tmp_path / "b", log_every=3)) == {step: whole[step] for step in (12, 15, 18, 20)}


def test_a_log_line_cut_short_by_a_kill_is_removed(tmp_path):
    toy(tmp_path / "a", stop=10, log_every=5)
    log = tmp_path / "a" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 1')
    toy(tmp_path / "a", log_every=5)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [5, 10, 15, 20]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    training = loop.Training(
        model=model,
        schedule=loop.Schedule(3, 1.0),
        make_batch=lambda n: n,
        losses=lambda n: {"loss": model(torch.ones(1)).sum() * (torch.nan if n else 1.0)},
        workers=0,
        log_every=1,
    )
    run = loop.train(loop.RunFolder(tmp_path), training)
    next(run)
    with pytest.raises(MmrrError, match="the loss is nan at step 1"):
        next(run)


def test_another_models_state_is_refused(tmp_path):
    toy(tmp_path, steps=5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(MmrrError, match="belongs to another model; use another run folder"):
        loop.RunFolder(tmp_path).restore(model, optimizer)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(MmrrError, match="cannot be read"):
        loop.RunFolder(tmp_path).restore(model, optimizer)


def test_all_tensors_of_a_batch_are_placed(page_images):
    found = placed(
        {"a": [torch.ones(2)], "b": (KeptTokens(torch.ones(1), (1, 1)), "text", page_images[0])}, torch.device("meta")
    )
    assert found["a"][0].is_meta
    assert found["b"][0].indices.is_meta
    assert found["b"][1:] == ("text", page_images[0])


def test_curves_are_drawn(tmp_path, monkeypatch):
    toy(tmp_path, log_every=1, evaluate=lambda: {"f1": 0.5}, evaluate_every=10)
    assert draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MmrrError, match="cannot read"):
        draw_curves(tmp_path / "no.jsonl", tmp_path / "curves.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MmrrError, match=r"pip install 'mmrr\[train\]'"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")


def test_old_logs_are_drawn_too(tmp_path):
    """Logs of earlier runs have ``right`` and ``val_right``, where new ones have ``accuracy``."""
    log = tmp_path / "log.jsonl"
    records = [{"step": n, "loss": 1 / n, "right": 0.5, "val_right": 0.4} for n in (1, 2)]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert draw_curves(log, tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


# Several processes


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = join("cpu")
    assert (group.device, group.rank, group.size, group.is_main) == (CPU, 0, 1, True)
    assert group.describe() == "cpu"
    assert world_size() == 1


def test_several_processes_without_accelerate_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    with pytest.raises(MmrrError, match=r"^several processes need accelerate; run: pip install 'mmrr\[train\]'$"):
        join("cpu")


def test_gradients_are_averaged_over_the_processes_that_have_one():
    """With a stand-in for accelerate: two processes; the other one has gradients 3 and 5, and loss 7."""
    own = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    own[0].grad = torch.ones(1)

    class Other:
        def reduce(self, message, reduction):
            assert reduction == "mean"
            # The loss, three flags for a gradient, three gradients.
            return (message + torch.tensor([7.0, 1, 1, 0, 3, 5, 0])) / 2

    group = ProcessGroup(CPU, 0, 2, Other())
    assert group.describe() == "2 x cpu"
    assert group.average_gradients(own, torch.tensor([1.0])).tolist() == [4.0]
    assert own[0].grad.tolist() == [2.0]
    assert own[1].grad.tolist() == [2.5]  # a process without this gradient counts as 0
    assert own[2].grad is None


@pytest.mark.slow
def test_two_processes_equal_one_process_with_twice_the_batches(pairs_folder, tmp_path, tiny_path):
    reranking(pairs_folder, tiny_path, pages=1, accumulate=2, steps=4)
    mmrr("train", "reranker", "--config", pairs_folder / "train.toml", "--run-dir", tmp_path / "one")
    reranking(pairs_folder, tiny_path, pages=1, accumulate=1, steps=4)
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    command = ("-m", "mmrr.cli.main", "train", "reranker", "--config", "train.toml", "--run-dir", tmp_path / "two")
    done = subprocess.run([*launch, *map(str, command)], cwd=pairs_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'adapter'}\n"  # only the main process prints
    one, two = (
        [json.loads(line)["loss"] for line in (Path(tmp_path) / run / "log.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert one == pytest.approx(two, abs=1e-5)
