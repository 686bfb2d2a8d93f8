"""Published training sets, in their published columns, become files of pairs and ranked lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from PIL import Image
from typer.testing import CliRunner

from mmrr.cli.main import app
from mmrr.errors import MmrrError
from mmrr.training import config
from mmrr.training.data.pairs import read_pairs
from mmrr.training.data.published_sets import MMDOCIR, Request, prepare
from mmrr.training.data.ranked_lists import read_lists
from tests.evaluation.published_sets import IMAGE, HubCache, png, shard, table, write_lines


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return HubCache(tmp_path / "hub")


def colpali(cache: HubCache) -> None:
    """Rows of query and page; one page is asked about twice."""
    shades = [0, 1, 1, 2]
    rows = table(
        image=pa.array([{"bytes": png(one), "path": f"{one}.png"} for one in shades], IMAGE),
        image_filename=[f"{one}.png" for one in shades],
        query=["a?", "b?", "c?", "d?"],
        answer=["1", "2", "3", "4"],
        source=["pdf"] * 4,
    )
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n---\n"
    cache.add("vidore/colpali_train_set", {"README.md": readme, "data/" + Path(shard("x", "train")).name: rows})


def mmdocir(cache: HubCache) -> None:
    def pages(*keys: tuple[str, int]) -> list[dict[str, Any]]:
        return [{"doc_name": name, "page_id": page} for name, page in keys]

    asked = [
        {"query": "one?", "positive_passages": pages(("x.pdf", 0)), "negative_passages": pages(("x.pdf", 1))},
        {"query": "two?", "positive_passages": pages(("y.pdf", 0), ("x.pdf", 1)), "negative_passages": []},
    ]
    parquet = table(
        file_name=["x.pdf", "x.pdf", "y.pdf"],
        page=pa.array([0, 1, 0], pa.int64()),
        domain=["DUDE"] * 3,
        image=pa.array([png(i) for i in range(3)], pa.binary()),
    )
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    cache.add(MMDOCIR, {"annotations_top1_negative/DUDE_train.jsonl": lines, "parquet/DUDE_filter.parquet": parquet})


def shades(folder: Path, names: Any) -> list[int]:
    found = []
    for name in names:
        with Image.open(folder / name) as image:
            found.append(image.getpixel((0, 0))[0])
    return found


def test_pairs_of_query_and_page(cache: HubCache, tmp_path: Path) -> None:
    colpali(cache)
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["mine", "--data", "vidore/colpali_train_set", "--output", str(out), "--random", "2"]
    )
    assert done.exit_code == 0, done.stderr
    pairs = read_pairs(out / "pairs.jsonl")
    assert {pair.query: shades(out, [pair.image])[0] for pair in pairs if pair.relevant} == {
        "a?": 0,
        "b?": 1,
        "c?": 1,
        "d?": 2,
    }
    for query, own in (("a?", 0), ("b?", 1)):
        wrong = shades(out, [pair.image for pair in pairs if pair.query == query and not pair.relevant])
        assert wrong
        assert own not in wrong
    assert len(list((out / "images").iterdir())) == 3
    assert prepare(Request("vidore/colpali_train_set", random=2), out) == out / "pairs.jsonl"  # not made again
    with pytest.raises(MmrrError, match=r"holds pairs.jsonl of another set or other options"):
        prepare(Request("vidore/colpali_train_set", limit=1), out)


def test_mmdocir_has_its_own_wrong_pages(cache: HubCache, tmp_path: Path) -> None:
    mmdocir(cache)
    found = read_pairs(prepare(Request(MMDOCIR), tmp_path / "out"))
    assert [(pair.query, shades(tmp_path, [pair.image])[0], pair.relevant) for pair in found] == [
        ("one?", 0, True),
        ("one?", 1, False),
        ("two?", 2, True),
        ("two?", 1, True),
    ]
    (found_one,) = {pair.query for pair in read_pairs(prepare(Request(MMDOCIR, "DUDE", 1), tmp_path / "one"))}
    assert found_one == "one?"


def test_rank_zephyr_orders_by_letters_and_by_numbers(tmp_path: Path) -> None:
    def conversation(names: list[str], answer: str) -> dict[str, Any]:
        passages = "\n".join(f"[{name}] text {i}\nline two [x]" for i, name in enumerate(names))
        prompt = f"I will provide you with 3 passages.\n\n{passages}\n\nSearch Query: what is it.\nRank the passages."
        turns = [("system", "You are RankLLM."), ("human", prompt), ("gpt", answer)]
        return {"conversations": [{"from": who, "value": text} for who, text in turns]}

    write_lines(
        tmp_path / "set" / "training_data.jsonl",
        [conversation(["A", "B", "C"], "[B] > [C] > [A]"), conversation(["1", "2", "3"], "[3] > [1] > [2]")],
    )
    first, second = read_lists(prepare(Request(str(tmp_path / "set")), tmp_path / "out"))
    assert (first.query, first.order, first.relevant) == ("what is it", (1, 2, 0), ())
    assert first.candidates[0] == "text 0\nline two [x]"
    assert second.order == (2, 0, 1)
    write_lines(tmp_path / "bad" / "x.jsonl", [{"conversations": [{"from": "human", "value": "hello"}]}])
    with pytest.raises(MmrrError, match="row 1: found 0 queries, 0 passages and 0 ranks, expected a prompt"):
        prepare(Request(str(tmp_path / "bad")), tmp_path / "none")


def test_zip_rerank_distillation(cache: HubCache, tmp_path: Path) -> None:
    mmdocir(cache)
    row = {
        "query_id": 5,
        "query": "where?",
        "doc_name": "x.pdf",
        "candidate_page_ids": [1, 0],
        "openai_ranking": [1, 0],
        "gt_page_ids": [0],
        "neg_page_ids": [1],
        "domain": "DUDE",
        "first_stage_scores": [0.5, 0.25],
    }
    write_lines(tmp_path / "set" / "train.jsonl", [row])
    (one,) = read_lists(prepare(Request(str(tmp_path / "set")), tmp_path / "out"))
    assert (one.query, one.order, one.relevant) == ("where?", (1, 0), (1,))
    assert shades(tmp_path, one.candidates) == [1, 0]
    write_lines(tmp_path / "lost" / "train.jsonl", [row | {"candidate_page_ids": [1, 7]}])
    with pytest.raises(MmrrError, match=r"DUDE_filter.parquet: found no image of 1 pages, such as 7 of x.pdf"):
        prepare(Request(str(tmp_path / "lost")), tmp_path / "none")


def test_a_config_names_a_hub_id_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('model = "x/y"\npairs = "vidore/colpali_train_set"\nlimit = 3\n')
    read = config.read(file, "embedder")
    assert isinstance(read, config.EmbedderConfig)
    assert (read.pairs, read.limit) == (Path("vidore/colpali_train_set"), 3)
    (tmp_path / "vidore").mkdir()
    (tmp_path / "vidore" / "colpali_train_set").write_text("")
    read = config.read(file, "embedder")
    assert isinstance(read, config.EmbedderConfig)
    assert read.pairs == tmp_path / "vidore" / "colpali_train_set"


def test_mine_needs_judgements_or_a_set(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["mine", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "expected --queries and --qrels, or --data HUB_ID" in done.stderr
