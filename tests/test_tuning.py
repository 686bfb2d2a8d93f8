"""``mmrr tune``: narrowed caches are those of the narrower setting; the chosen setting is one that commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmrr import tuning
from mmrr.errors import MmrrError
from mmrr.evaluation import calibration
from mmrr.scorers.minireranker import Prepare, Score, Scorer
from tests.conftest import CPU
from tests.console import FP32, INDEX, SOIL, THESIS, mmrr, refused, write_documents, write_queries

QUESTIONS = ["When is the thesis due?", "Who reads the thesis?", "soil", "moss", "lorem", "How deep is the soil?"]


@pytest.mark.parametrize(("band", "codec"), [("0:4", "none"), ("1:3", "none"), ("1:4", "int8"), ("2:3", "int4")])
def test_narrowed_caches_are_those_of_the_narrower_scorer_bit_for_bit(tiny, page_images, band, codec) -> None:
    wide, narrow = Scorer(tiny, Prepare("0:4"), CPU, torch.float32), Prepare(band, codec=codec)
    made = Scorer(tiny, narrow, CPU, torch.float32)
    pages, nothing = page_images[:2], [None, None]
    scorer, caches, shared = wide.narrowed(narrow, wide.prepare(pages, nothing), wide.shared_state())
    for found, expected in zip([*caches, shared], [*made.prepare(pages, nothing), made.shared_state()], strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    assert torch.equal(*(one.score("lorem", caches, shared, Score()) for one in (scorer, made)))


def test_caches_outside_the_band_are_not_narrowed(tiny, page_images) -> None:
    scorer = Scorer(tiny, Prepare("1:3"), CPU, torch.float32)
    with pytest.raises(MmrrError, match="expected a band that contains 0:3, and codec none"):
        scorer.narrowed(Prepare("0:3"), [], scorer.shared_state())


def test_fronts_come_one_after_the_other() -> None:
    setting = [tuning.Setting(1.0, "0:4", n, "none") for n in range(5)]
    costs = [(-0.9, 9), (-0.5, 1), (-0.8, 9), (-0.4, 2), (-0.9, 10)]
    found = tuning._best_fronts(list(zip(setting, costs, strict=True)), 3)
    assert {one.exit_layer for one in found[:2]} == {0, 1}
    assert found[2].exit_layer in (2, 3, 4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_embedder_path: Path) -> Path:
    root = tmp_path_factory.mktemp("tune")
    write_documents(root / "docs", thesis=THESIS, soil=SOIL)
    write_queries(root / "queries.jsonl", *((f"q{i}", text, None) for i, text in enumerate(QUESTIONS)))
    lines = [f"q{i} 0 {'thesis' if i < 2 else 'soil'}.pdf/000{1 + i % 2} 1\n" for i in range(len(QUESTIONS))]
    (root / "qrels.trec").write_text("".join(lines))
    mmrr("index", root / "docs", "--work", root / "work", "--embedder", tiny_embedder_path, *INDEX, *FP32)
    return root / "work"


def command(work: Path, tiny_path: Path, *more: object) -> tuple[object, ...]:
    files = ("--queries", work.parent / "queries.jsonl", "--qrels", work.parent / "qrels.trec")
    return ("tune", "--work", work, "--scorer-model", tiny_path, *files, *FP32, *more)


@pytest.mark.slow
def test_the_chosen_setting_is_one_that_the_commands_take(
    work: Path, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (work / "current.json").read_bytes() if (work / "current.json").exists() else None
    written, plot = tmp_path / "mmrr.toml", tmp_path / "tuned.png"
    asked = command(work, tiny_path, "--keep-quality", 0, "--json", "--calibrate", "--output", written, "--plot", plot)
    found = json.loads(mmrr(*asked).stdout)
    assert found["queries"] == [3, 3]
    chosen = found["chosen"]
    # Whatever the quality may be, the smallest cache is chosen.
    assert chosen["page_bytes"] == min(point["page_bytes"] for point in found["points"])
    assert chosen["page_bytes"] < found["default"]["page_bytes"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert before is None or (work / "current.json").read_bytes() == before
    assert calibration.read(tmp_path / "mmrr.calibration.json").made_for["family"] == "minireranker"

    monkeypatch.chdir(tmp_path)
    mmrr("precache", "--work", work, *FP32)
    run = tmp_path / "run.trec"
    mmrr("rerank", "--work", work, "--queries", work.parent / "queries.jsonl", "--output", run)
    judged = json.loads(mmrr("eval", "--work", work, "--qrels", work.parent / "qrels.trec", "--json").stdout)
    expected = (chosen["quality"] + chosen["reported"]) / 2
    assert judged["metrics"]["reranked"]["nDCG@5"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_limits_that_no_setting_keeps_are_named(work: Path, tiny_path: Path) -> None:
    assert "no setting is within the limits" in refused(*command(work, tiny_path, "--bytes", "10"))


def test_too_few_judged_queries_are_refused(work: Path, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "qrels.trec").write_text("q0 0 thesis.pdf/0001 1\n")
    files = ("--queries", work.parent / "queries.jsonl", "--qrels", tmp_path / "qrels.trec")
    message = refused("tune", "--work", work, "--scorer-model", tiny_path, *files, *FP32)
    assert "found 1 judged queries; expected at least 4" in message


JUDGED = [(-6.0 + 0.1 * i, (i * 7919) % 100 < max(0, i - 40)) for i in range(120)]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_calibration_is_monotone_lowers_the_error_and_survives_its_file(method, tmp_path: Path) -> None:
    found = calibration.fit(JUDGED, method, {"family": "minireranker"})
    path = tmp_path / "calibration.json"
    path.write_text(calibration.as_text(found))
    assert calibration.read(path) == found
    values = [found.probability(x / 10) for x in range(-200, 200)]
    assert values == sorted(values)
    assert 0 <= values[0] <= values[-1] <= 1
    before, after = calibration.errors(found, JUDGED)
    assert after < before / 2


def test_the_error_of_known_probabilities() -> None:
    assert calibration.ece([0.25, 0.25, 0.25, 0.25], [True, False, False, False]) == 0
    assert calibration.ece([0.9, 0.9, 0.1], [True, False, False]) == pytest.approx((2 * 0.4 + 0.1) / 3)


def test_what_cannot_be_calibrated_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MmrrError, match="found 2 relevant pages among 2 candidates"):
        calibration.fit([(1.0, True), (2.0, True)], "platt", {})
    with pytest.raises(MmrrError, match="cannot be calibrated"):
        calibration.fit([(1.0, True), (2.0, False)], "platt", {})
    (tmp_path / "x.json").write_text('{"schema": "other"}')
    with pytest.raises(MmrrError, match="expected a file of mmrr tune --calibrate"):
        calibration.read(tmp_path / "x.json")
