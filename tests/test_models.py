"""The models that come with mmrr are small and rank the page that answers a query above other pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from transformers import AutoConfig

import mmrr
from mmrr.cli.context import scoring_of
from mmrr.embedders import colqwen3 as embedders
from mmrr.errors import MmrrError
from mmrr.modeling import checkpoints, families
from mmrr.modeling.checkpoints import Checkpoint
from mmrr.scorers import minireranker, ziprerank
from mmrr.workspace.files import HashCache
from tests.conftest import CPU

FOLDER = Path(mmrr.__file__).parent / "models"
NAMES = ("reader-embedder", "reader-reranker")
#: The checkpoints of the other scorers by family.
SMALL = {"edje": "small-edje", "kalm": "small-kalm", "ziprerank": "small-ziprerank"}
#: Pages of plain text. Each query below is answered by exactly one of them.
PAGES = (
    ("Ferry timetable", "The morning boat leaves the harbour", "at seven and carries thirty passengers."),
    ("Soil moisture", "Rainfall in spring was measured", "by eleven sensors under the orchard."),
    ("Espresso machine", "Descale the boiler every month", "with citric acid and plenty of water."),
    ("Thesis regulations", "Two examiners read the thesis", "and report to the graduate school."),
)
QUERIES = ("morning boat harbour", "rainfall sensors orchard", "descale the boiler", "examiners thesis graduate school")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    hashes = HashCache(tmp_path_factory.mktemp("models") / "hashes.json")
    return {name: checkpoints.resolve(name, None, hashes) for name in NAMES}


@pytest.fixture(scope="module")
def pages() -> list[Image.Image]:
    drawn = []
    for lines in PAGES:
        page = Image.new("RGB", (640, 416), "white")
        draw = ImageDraw.Draw(page)
        for i, line in enumerate(lines):
            draw.text((50, 60 + 80 * i), line, fill="black", font=ImageFont.load_default(size=20))
        drawn.append(page)
    return drawn


def test_the_models_are_small_and_in_safetensors(found: dict[str, Checkpoint]) -> None:
    """At most 15 million parameters each; 40 MB for the first two and 40 MB for the others; safetensors only."""
    assert checkpoints.built_in() == sorted((*NAMES, *SMALL.values()))
    for names in (NAMES, SMALL.values()):
        files = [path for name in names for path in (FOLDER / name).iterdir()]
        assert sum(path.stat().st_size for path in files) < 40e6
        assert {path.suffix for path in files} <= {".json", ".jinja", ".safetensors", ".txt"}
    for name in (*NAMES, *SMALL.values()):
        weights = load_file(FOLDER / name / "model.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) < 15e6
    for checkpoint in found.values():
        assert AutoConfig.from_pretrained(checkpoint.path).model_type == "qwen3_vl"


def test_the_two_share_a_vision_tower(found: dict[str, Checkpoint]) -> None:
    """The embedder is wider than the reader: its input is the reader's tokens padded with zeros."""
    narrow, wide = (load_file(found[name].path / "model.safetensors") for name in reversed(NAMES))
    tower = [name for name in wide if ".visual." in name]
    assert tower
    for name in tower:
        rows = len(narrow[name])
        assert torch.equal(wide[name][:rows], narrow[name]), name
        assert not wide[name][rows:].any(), name


def test_small_edje_sees_through_the_tower_it_was_trained_with() -> None:
    """The checkpoint has no vision tower and depends on another model's, which may be trained further."""
    named = json.loads((FOLDER / "small-edje" / "config.json").read_text())["vision"]
    taken = load_file(FOLDER / named / "model.safetensors")
    trained_with = load_file(Path(__file__).parents[1] / "runs" / "reader-2" / "checkpoint" / "model.safetensors")
    tower = [name for name in trained_with if ".visual." in name]
    assert tower
    assert all(torch.equal(taken[name], trained_with[name]) for name in tower)


def test_the_reranker_puts_each_querys_page_first(found: dict[str, Checkpoint], pages: list[Image.Image]) -> None:
    checkpoint = found["reader-reranker"]
    prepare = minireranker.resolve(minireranker.Prepare(), checkpoint.config())
    assert prepare.band == "2:5"
    scorer = minireranker.Scorer(checkpoint, prepare, CPU, torch.float32)
    states, shared = scorer.prepare(pages, [None] * len(pages)), scorer.shared_state()
    for wanted, query in enumerate(QUERIES):
        scores = scorer.score(query, states, shared, minireranker.Score())
        assert int(scores.argmax()) == wanted, (query, scores)


def test_the_embedder_finds_each_querys_page(found: dict[str, Checkpoint], pages: list[Image.Image]) -> None:
    embedder = embedders.Embedder(found["reader-embedder"], embedders.Prepare(), CPU, torch.float32)
    vectors = [page.vectors.float() for page in embedder.embed_pages(pages)]
    asked = embedder.embed_queries(QUERIES, embedders.Search())
    similar = torch.tensor([[float((query @ page.T).amax(1).sum()) for page in vectors] for query in asked])
    right = int((similar.argmax(1) == torch.arange(len(QUERIES))).sum())
    assert right >= 3, similar


@pytest.mark.parametrize(("family", "least"), [("edje", 3), ("kalm", 4)])
def test_the_other_scorers_find_each_querys_page(
    family: str, least: int, pages: list[Image.Image], tmp_path: Path
) -> None:
    """At least the given number of the four queries has its page first."""
    module = families.load("scorers", family)
    checkpoint = checkpoints.resolve(SMALL[family], None, HashCache(tmp_path / "hashes.json"), module.SPEC.model_types)
    prepare = module.resolve(module.Prepare(), checkpoint.config())
    scorer = module.load(checkpoint, prepare, CPU, torch.float32)
    given = [". ".join(lines) for lines in PAGES] if module.page_input(prepare) == "text" else pages
    states, shared = scorer.prepare(given, [None] * len(pages)), scorer.shared_state()
    right = [int(scorer.score(query, states, shared, module.Score()).argmax()) == i for i, query in enumerate(QUERIES)]
    assert sum(right) >= least, right


@pytest.mark.parametrize("family", sorted(SMALL))
def test_who_names_no_model_is_told_the_familys_own(family: str) -> None:
    with pytest.raises(MmrrError, match=f"or {SMALL[family]}, the small model that mmrr includes") as error:
        scoring_of(family, None, None, None, {})
    assert "Qwen" not in str(error.value)


def test_the_small_ziprerank_keeps_what_is_asked_for(pages: list[Image.Image], tmp_path: Path) -> None:
    """It keeps an eighth of the tokens, as it was trained to.

    Most of them are on the two lines with the query's words, of thirteen rows of the page. For three of four queries
    the nearest token is on the query's own page. The letters of its ranking are too weak for a test.
    """
    checkpoint = checkpoints.resolve(SMALL["ziprerank"], None, HashCache(tmp_path / "hashes.json"))
    prepare = ziprerank.resolve(ziprerank.Prepare(), checkpoint.config())
    scorer = ziprerank.Scorer(checkpoint, prepare, CPU, torch.float32)
    assert scorer.taught == {"max_side": 0, "window": 3, "keep": 0.125, "interaction": "hidden"}
    states = scorer.prepare(pages, [None] * len(pages))
    nearest = []
    for own, query in enumerate(QUERIES):
        before, question, after = scorer.segments(query, 3)
        words = scorer.interacting(before, question, after, "hidden")
        near = [ziprerank.nearness(words, state["tokens"]) for state in states]
        nearest.append(int(torch.stack([one.max() for one in near]).argmax()) == own)
        rows = ziprerank.choose(near[own], 0.125) // int(states[own]["grid"][1])
        assert int(torch.isin(rows, torch.tensor([4, 7])).sum()) > len(rows) / 2
        logits = scorer.logits(query, states, [0, 1, 2], ziprerank.Score())
        assert torch.isfinite(logits).all()
    assert sum(nearest) >= 3
