"""Training EDJE: small runs on drawn pages whose checkpoints the ordinary scorer loads.

Tolerance between the training forward and the scorer: |d logit| <= 1e-4 in float32.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrr.backbones import edje as backbone
from mmrr.errors import MmrrError
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.scorers import edje as scorer
from mmrr.training.config import read
from mmrr.training.families import edje
from mmrr.training.families.edje import Config
from mmrr.training.families.edje_init import SPECIALS, learn_pieces, load, write_pieces
from mmrr.training.synthetic.sources import read_documents
from mmrr.workspace.files import HashCache
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents
from tests.scorers.edje.reference import Original, write_edje, write_vision
from tests.texts import write_texts
from tests.tiny import write_checkpoint

TOLERANCE = 1e-4
SIZES = (
    "tokens = 4\nadapter_heads = 4\nadapter_mlp = 24\nlayers = 2\nhidden = 16\nheads = 2\nmlp = 24\nvocabulary = 300\n"
)
STUDENT = 'teacher = "local/checkpoint"\n'
QUERIES = ("the ferry of Skarrow", "library", "Who opened the school of Lunna 2?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train-edje")
    write_texts(folder / "texts.jsonl")
    write_checkpoint(folder / "vision", layers=1)
    return folder


def config(folder: Path, name: str, lines: str = "", vision: str = "vision", sizes: str = SIZES) -> Config:
    common = (
        f'scorer = "edje"\ndocuments = "texts.jsonl"\npool = "pool"\nvision = "{vision}"\nworkers = 0\nwarmup = 1\n'
        "reports = 2\nheld_out = 0.0\nsave_every = 2\nsteps = 4\npages = 3\npretraining = 2\n"
    )
    own = {line.split(" ")[0] for line in lines.splitlines()}
    kept = [line for line in (common + sizes).splitlines() if line.split(" ")[0] not in own]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(kept) + "\n" + lines)
    found = read(path, "reranker")
    assert isinstance(found, Config)
    return found


def losses_of(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def runs(folder: Path) -> Path:
    """A Local model, and a compressed model that is distilled from it."""
    for name, lines in (("local", "tokens = 0\n"), ("student", STUDENT)):
        last = list(edje.train(config(folder, name, lines), folder / name))[-1]
        assert last["step"] == 4
        assert math.isfinite(last["loss"])
        assert ("distilled" in last) == (name == "student")
    return folder


def found(path: Path) -> Checkpoint:
    return resolve(str(path), None, HashCache(path.parent / "hashes.json"), scorer.SPEC.model_types)


def scorer_of(folder: Path, name: str, vision: str = "vision") -> scorer.Scorer:
    checkpoint = found(folder / name / "checkpoint")
    prepare = scorer.resolve(scorer.Prepare(vision=str(folder / vision)), checkpoint.config())
    return scorer.Scorer(checkpoint, prepare, CPU, torch.float32)


# Word pieces


def test_word_pieces_are_learned_from_the_documents(folder: Path, tmp_path: Path) -> None:
    documents = read_documents(folder / "texts.jsonl")
    pieces = learn_pieces(documents, 300, punctuation=False)
    assert pieces[:5] == list(SPECIALS)
    assert len(pieces) == len(set(pieces)) <= 300
    assert not {".", "(", "?"} & set(pieces)
    assert {".", "(", "?"} <= set(learn_pieces(documents, 300, punctuation=True))
    assert pieces == learn_pieces(documents, 300, punctuation=False)
    write_pieces(pieces, tmp_path)
    read_back = backbone.WordPieces(tmp_path, len(pieces))
    assert (read_back.cls, read_back.sep, read_back.mask) == (2, 3, 4)
    unknown, specials = pieces.index("[UNK]"), set(range(5))
    for text in ("zebra qqq 0918 xylophone", *QUERIES):
        ids = read_back.encode(scorer.canonical(text))
        assert unknown not in ids
        assert "".join(pieces[i].removeprefix("##") for i in ids) == scorer.canonical(text).replace(" ", "")
    assert len(read_back.encode("ferry of the library")) < 10  # common words are few pieces
    assert not (specials - {unknown}) & set(read_back.encode("[CLS] [SEP] [MASK]"))


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "student"])
def test_the_training_forward_equals_the_scorer(runs: Path, name: str, page_images: list[Any]) -> None:
    """The training forward over the saved weights against the scorer, from page image to logit."""
    ordinary = scorer_of(runs, name)
    vision = json.loads((runs / "vision" / "config.json").read_text())
    network, pieces, punctuation = load(found(runs / name / "checkpoint"), vision, runs / name / "checkpoint")
    pages = [tokens.clone() for tokens in ordinary.vision.tokens(page_images)]
    texts = [scorer.text_ids(pieces, query, punctuation=punctuation) for query in QUERIES]
    assert texts == [ordinary.text_ids(query) for query in QUERIES]
    with torch.no_grad():
        trained = network.scores(pages, texts, pieces.sep)
    for query, row in zip(QUERIES, trained, strict=True):
        scores = torch.tensor([ordinary.score_uncached(query, image, None, scorer.Score()) for image in page_images])
        assert (scores - row).abs().max() <= TOLERANCE
    assert (trained[0] - trained[1]).abs().max() > 0


@pytest.mark.slow
def test_the_checkpoint_has_the_weights_of_the_last_state(runs: Path) -> None:
    """State and checkpoint hold the same tensors; the checkpoint has half precision and no head of masked modelling."""
    state = load_file(runs / "student" / "state.safetensors")
    weights = load_file(runs / "student" / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    for name, tensor in weights.items():
        assert torch.equal(tensor, state[f"model.{name}"].half()), name
    left = {name for name in state if name.startswith("model.") and name.removeprefix("model.") not in weights}
    assert all(".cls." in name for name in left)
    start = load_file(runs / "student" / "start" / "model.safetensors")
    assert not torch.equal(start["vision_projection.query"].half(), weights["vision_projection.query"])


@pytest.mark.slow
def test_local_keeps_every_token_and_the_student_four(runs: Path, page_images: list[Any]) -> None:
    for name, shapes in (("local", [35, 32, 36, 6]), ("student", [4] * 4)):
        states = scorer_of(runs, name).prepare(page_images, [None] * 4)
        assert [len(state["z"]) for state in states] == shapes
    assert scorer_of(runs, "local").prepare_options.tokens == 1280


@pytest.mark.slow
def test_a_resumed_run_repeats_its_losses(runs: Path) -> None:
    settings = config(runs, "student", STUDENT + "decay = 0.0\nstrips = 0.0\n")
    whole = losses_of(list(edje.train(settings, runs / "whole")))
    list(edje.train(replace(settings, steps=2), runs / "parts"))
    parts = losses_of(list(edje.train(settings, runs / "parts")))
    assert len(whole) == 2
    assert parts == whole[1:]
    state, other = (load_file(runs / name / "state.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in state.items())


@pytest.mark.slow
def test_a_run_is_measured_on_held_out_documents(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edje, "HELD_OUT_REPORTS", 1)
    lines = 'held_out = 0.1\nreports = 1\npool = "other-pool"\nevaluate_every = 2\nsteps = 2\n'
    last = list(edje.train(config(folder, "measured", lines), folder / "measured"))[-1]
    assert 0 <= last["val_accuracy"] <= 1
    assert 0 < last["val_loss"] < 2 * math.log(3)


@pytest.mark.slow
def test_a_run_starts_from_a_checkpoint(runs: Path) -> None:
    """It takes sizes, word pieces and weights from the checkpoint; with a tiny rate they do not change."""
    lines = "steps = 1\nlr = 1e-9\nwarmup = 0\n"
    more = config(runs, "more", lines + 'start = "student/checkpoint"\n', sizes="")
    list(edje.train(more, runs / "more"))
    weights, before = (load_file(runs / name / "checkpoint" / "model.safetensors") for name in ("more", "student"))
    assert weights.keys() == before.keys()
    for name, tensor in weights.items():
        assert (tensor - before[name]).abs().max() <= 1e-3
    words = [(runs / name / "checkpoint" / "vocab.txt").read_bytes() for name in ("more", "student")]
    assert words[0] == words[1]


@pytest.mark.slow
def test_a_run_starts_from_a_published_shape_over_siglip(folder: Path, page_images: list[Any]) -> None:
    """The paper's second stage: no masking, pages resized to the encoder's square."""
    write_vision(folder / "siglip")
    torch.manual_seed(5)
    write_edje(folder / "published", Original())
    lines = 'start = "published"\nstrips = 0.0\nmasking = 0.0\nsteps = 2\nheld_out = 0.0\nqueries = 1\n'
    settings = config(folder, "over-siglip", lines, vision="siglip", sizes="")
    list(edje.train(settings, folder / "over-siglip"))
    trained = scorer_of(folder, "over-siglip", "siglip")
    assert trained.prepare(page_images[:1], [None])[0]["z"].shape == (4, 12)
    with pytest.raises(MmrrError, match=r"strips = 0.5: .* resizes every page to a square.*expected strips = 0.0"):
        list(edje.train(replace(settings, strips=0.5), folder / "no"))


@pytest.mark.slow
def test_from_the_command_line_to_a_ranking(runs: Path, tmp_path: Path) -> None:
    config(runs, "cli", "held_out = 0.0\nsteps = 2\n")
    printed = json.loads(
        mmrr("train", "reranker", "--config", runs / "cli.toml", "--run-dir", tmp_path / "run", "--json").stdout
    )
    assert printed["result"] == str(tmp_path / "run" / "checkpoint")
    docs = write_documents(tmp_path / "docs", thesis=THESIS, soil=SOIL)
    work = ("--work", tmp_path / "w")
    mmrr("index", docs, *work, *INDEX)
    model = ("--scorer-model", printed["result"])  # its config.json names the vision encoder
    mmrr("precache", *work, "--scorer", "edje", *model, *FP32)
    ranked = json.loads(mmrr("rerank", "the thesis", *work, "--json").stdout)
    assert ranked
    assert json.loads(mmrr("verify", *work, "--json").stdout)["problems"] == []
    (runs / "bad.toml").write_text((runs / "cli.toml").read_text().replace("tokens = 4", "tokens = 4\nband = 1"))
    assert "unknown key band" in refused(
        "train", "reranker", "--config", runs / "bad.toml", "--run-dir", tmp_path / "bad"
    )


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("pages = 1\n", "pages = 1; expected 2 or more"),
        ("tokens = -1\n", "tokens = -1; expected 0 or more"),
        ("hidden = 15\n", "hidden = 15 cannot have heads = 2"),
        ("adapter_heads = 3\n", "width 64 cannot have adapter_heads = 3"),
        ('start = "published"\n', "published reads vision tokens of width 16; those of `vision` have 64"),
        ('teacher = "vision"\n', "0 tensors are named"),
        ("tokens = 0\nmax_tokens = 8\n", "which do not fit 72 positions; raise max_tokens"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(folder: Path, tmp_path: Path, lines: str, why: str) -> None:
    write_edje(folder / "published", Original())
    with pytest.raises(MmrrError, match=why):
        list(edje.train(config(folder, "unfit", lines + ""), tmp_path / "run"))
