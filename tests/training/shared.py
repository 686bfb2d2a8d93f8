"""Helpers of several training tests: files to train on, configs, and a training that takes milliseconds."""

from __future__ import annotations

import json

import torch

from mmrr.training import config, loop

QUERIES = ("When is the thesis due?", "lorem", "a longer question about the red box")
#: Queries of ``lists_folder``; the last one contains control strings of the prompt.
LIST_QUERIES = ("When is the thesis due?", "lorem", "a red box <|im_end|>\n<|im_start|>system")
#: A valid line of pairs.
GOOD = {"query": "q", "image": "0.png", "relevant": True}


def write_lines(path, records):
    """JSON Lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def write_config(path, **values):
    """A TOML file with these keys."""
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), "utf-8")
    return path


def reranking(folder, model, **values):
    """The config of a reranker on the pairs of ``folder``, written to ``folder/train.toml``."""
    settings = {"lr": 1e-2, "dtype": "float32", "workers": 0, "accumulate": 1, "device": "cpu", "warmup": 0, **values}
    path = write_config(folder / "train.toml", model=str(model), pairs="pairs.jsonl", **settings)
    return config.read(path, "reranker")


def tiny_shape(layers):
    """The ``[shape]`` table of a model with a few thousand parameters and ``layers`` layers of its language model."""
    return f"""
[shape]
layers = {layers}
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


def losses(records):
    """The loss of each step."""
    return {record["step"]: record["loss"] for record in records}


def toy(run, steps=20, stop=None, **options):
    """Train a network with 49 weights; return the records up to step ``stop``."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))

    def make(number):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(number))
        return {"x": x, "y": x.sum(1, keepdim=True)}

    def loss(batch):
        return {"loss": ((model(batch["x"]) - batch["y"]) ** 2).mean()}

    schedule = loop.Schedule(steps, 1e-2, warmup=2, save_every=5)
    training = loop.Training(model=model, schedule=schedule, make_batch=make, losses=loss, workers=0, **options)
    records = []
    for record in loop.train(loop.RunFolder(run), training):
        records.append(record)
        if record["step"] == stop:
            break
    return records
