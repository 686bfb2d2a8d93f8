"""Options with values that cannot be used: exit code 1 from mmrr, 2 from the check of the types."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mmrr.cli import options as o
from mmrr.config import DenseOrder, FirstStage, PruneBy, Scope
from mmrr.documents import rendering
from mmrr.evaluation import mmdocir
from mmrr.modeling import devices, kv_codec
from mmrr.training import config
from tests.cli.conftest import Prepared
from tests.console import INDEX, files, misused, refused

QUESTION = "When is the thesis due?"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--keep", "0"], "keep 0"),
        (["--keep", "1.5"], "keep 1.5"),
        (["--keep", "nan"], "keep nan"),
        (["--keep", "-0.5"], "keep -0.5"),
        (["--band", "nonsense"], "band 'nonsense'"),
        (["--band", "3:2"], "band 3:2"),
        (["--band", "0:7"], "band 0:7 does not fit a model of 6 layers"),
        (["--band", "-1:3"], "band"),
        (["-o", "unknown=1"], "unknown option unknown; valid options: band, codec, instruction, max_tokens"),
        (["-o", "nonsense"], "option 'nonsense': expected KEY=VALUE"),
        (["-o", "max_tokens=many"], "max_tokens=many"),
        (["-o", "max_tokens=-3"], "max_tokens"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--from", "nonsense"], "--from"),
        (["--from", "index/nonsense"], "nonsense"),
        (["--from", "index/0123456789ab"], "no index/0123456789ab"),
        (["--from", "indxe/0123456789ab"], "indxe"),
        (["--from", "rerank/0123456789ab"], "rerank/0123456789ab"),
    ],
)
def test_options_of_precache(prepared: Prepared, options: list[str], says: str) -> None:
    before = files(prepared.work)
    assert says in refused("precache", "--work", prepared.work, "--scorer-model", prepared.model, *options)
    assert files(prepared.work) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--candidates", "0"], "--candidates 0"),
        (["--candidates", "-1"], "--candidates -1"),
        (["--exit-layer", "99"], "exit layer 99"),
        (["--exit-layer", "1"], "exit layer 1"),
        (["--exit-layer", "-1"], "exit layer -1"),
        (["-s", "unknown=1"], "unknown option unknown; valid options: exit_layer"),
        (["--dense", "--exit-layer", "4"], "--dense"),
        (["--prompt", "query-first"], "--dense"),
        (["--fuse", "-1"], "-1.0: expected 0 or more"),
        (["--fuse", "inf"], "inf: expected 0 or more"),
        (["--first-stage", "hybrid"], "mmrr index with --embedder"),
        (["--device", "quantum"], "device 'quantum'"),
        (["--from", "precache/0123456789ab"], "no precache/0123456789ab"),
        (["--search-option", "unknown=1"], "unknown"),
        (["--document", "these.pdf"], "no document 'these.pdf' in the collection; the nearest are thesis.pdf"),
    ],
)
def test_options_of_rerank(prepared: Prepared, options: list[str], says: str) -> None:
    assert says in refused("rerank", f"thesis {options}", "--work", prepared.work, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dpi", "0"], "--dpi 0: expected at least 1 and at most 9600"),
        (["--dpi", "-10"], "--dpi -10"),
        (["--dpi", "9" * 400], "--dpi"),
        (["--max-tokens", "0"], "--max-tokens 0: expected at least 4 and at most 65536"),
        (["--max-tokens", "9" * 400], "--max-tokens"),
        (["--page-timeout", "0"], "--page-timeout 0.0: expected a number of seconds above 0"),
        (["--page-timeout", "nan"], "--page-timeout nan"),
        (["--page-memory", "1MiB"], "--page-memory 1048576: expected at least 256 MiB"),
        (["--page-memory", "9" * 400], "--page-memory"),
        (["--workers", "-2"], "--workers -2"),
        (["--embed-option", "nonsense"], "expected KEY=VALUE"),
        (["--embedder", "nothing here"], "nothing here"),
    ],
)
def test_options_of_index(prepared: Prepared, tmp_path: Path, options: list[str], says: str) -> None:
    assert says in refused("index", prepared.docs, "--work", tmp_path / "w", *INDEX, *options)


def test_options_of_the_embedder(prepared: Prepared, tmp_path: Path, tiny_embedder_path: Path) -> None:
    command = ("index", prepared.docs, "--work", tmp_path / "w", *INDEX, "--embedder", tiny_embedder_path)
    assert "dim 999" in refused(*command, "--dim", "999")
    assert "dim -1" in refused(*command, "--dim", "-1")
    assert "unknown option colour" in refused(*command, "--embed-option", "colour=red")
    assert "FAISS cannot build 'Nonsense'" in refused(*command, "--faiss-factory", "Nonsense")
    assert "FAISS cannot build 'IVF64,Flat' over 5 vectors" in refused(*command, "--faiss-factory", "IVF64,Flat")


def test_what_the_embedder_or_the_index_cannot_do_is_found_before_the_work(
    prepared: Prepared, tmp_path: Path, tiny_embedder_path: Path, no_models: None
) -> None:
    work = tmp_path / "w"
    command = ("index", prepared.docs, "--work", work, *INDEX, "--embedder", tiny_embedder_path)
    assert "dim 999: expected 0 to 64" in refused(*command, "--dim", "999")
    assert not work.exists(), "no page was rendered"
    refusal = refused(*command, "--faiss-factory", "IVF64,Flat")
    assert "FAISS cannot build 'IVF64,Flat' over 5 vectors: it needs at least 64; try 'Flat'" in refusal


@pytest.mark.parametrize(
    "options",
    [
        ("--keep", "9" * 400),
        ("--band", "9" * 400),
        ("--band", f"0:{'9' * 5000}"),
        ("-o", f"max_tokens={'9' * 400}"),
        ("-o", "max_tokens=" + "9" * 5000),
        ("--device", "cuda:" + "9" * 400),
        ("--device", "meta"),
        ("--device", "hpu"),
    ],
    ids=lambda options: " ".join(options)[:24],
)
def test_huge_numbers_and_strange_devices(prepared: Prepared, options: tuple[str, str]) -> None:
    refused("precache", "--work", prepared.work, "--scorer-model", prepared.model, *options)


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        ("index", "--dtype", o.DtypeName),
        ("index", "--renderer", o.RendererName),
        ("index", "--first-stage", FirstStage),
        ("precache", "--codec", o.CodecName),
        ("prune", "--by", PruneBy),
        ("rerank", "--scope", Scope),
        ("rerank", "--prompt", DenseOrder),
    ],
)
def test_a_value_that_is_not_a_choice_is_refused_with_the_choices(command: str, option: str, values: object) -> None:
    message = misused(command, option, "other")
    assert f"Invalid value for '{option}'" in message
    assert all(f"'{value}'" in message for value in get_args(values))


def test_choices_are_those_of_the_library() -> None:
    assert set(get_args(o.CodecName)) == set(kv_codec.CODECS)
    assert set(get_args(o.DtypeName)) == {"auto", *devices.DTYPES}
    assert set(get_args(o.RendererName)) == {"auto", *get_args(rendering.Renderer)}
    assert set(get_args(o.BenchmarkText)) == set(get_args(mmdocir.Text))
    assert set(get_args(o.Task)) == set(config.TASKS)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["rerank", QUESTION, "--nonsense"], "No such option: --nonsense"),
        (["rerank", QUESTION, "--top-k", "few"], "Invalid value for '--top-k'"),
        (["rerank", QUESTION, "--top-k", "0"], "Invalid value for '--top-k'"),
        (["precache", "--keep", "half"], "Invalid value for '--keep'"),
        (["index"], "Missing argument 'DOCUMENTS'"),
        (["run", "documents"], "Missing option '--queries'"),
        (["eval", "mmdocir", "--text", "none"], "Invalid value for '--text'"),
        (["prunne"], "Did you mean 'prune'"),
        (["train", "ranker", "--config", "c", "--run-dir", "r"], "'reader', 'embedder', 'reranker'"),
    ],
)
def test_wrong_usage_is_exit_code_2(command: list[str], says: str) -> None:
    assert says in misused(*command)


def test_a_checkpoint_of_the_other_kind_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    index = ("index", prepared.docs, "--work", tmp_path / "w", *INDEX)
    refusal = refused(*index, "--embedder", "reader-reranker")
    assert (
        "reader-reranker is the checkpoint of a scorer, expected an embedder; mmrr includes reader-embedder" in refusal
    )
    assert "mmrr includes reader-embedder" in refused(*index, "--embedder", "small-kalm")
    precache = ("precache", "--work", prepared.work)
    refusal = refused(*precache, "--scorer-model", "reader-embedder")
    assert "reader-embedder is the checkpoint of an embedder, expected a scorer; mmrr includes " in refusal
    assert "reader-reranker" in refusal
