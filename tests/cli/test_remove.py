"""``mmrr rm`` and ``mmrr view``."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.cli.chain import QUESTION, Chain
from tests.console import (
    files,
    mmrr,
    refused,
    shards,
)


def test_view_draws_the_kept_tokens(made: Chain, tmp_path: Path) -> None:
    picture = tmp_path / "kept.png"
    shown = mmrr("view", "thesis.pdf/0001", "--work", made.work, "--output", picture)
    assert shown.stdout.strip() == str(picture)
    assert Image.open(picture).size in {Image.open(page).size for page in made.work.rglob("0001.png")}


def test_view_refuses_in_one_line(made: Chain, tmp_path: Path) -> None:
    view = ("view", "--work", made.work, "--output")
    message = refused(*view, tmp_path / "a.png", "soil.pdf/0099")
    assert message.endswith("no page soil.pdf/0099 in the index; soil.pdf has 3 pages: soil.pdf/0001 to soil.pdf/0003")
    assert "thesis.pdf has 2 pages: thesis.pdf/0001 to" in refused(*view, tmp_path / "a.png", "thesis.pdf")
    message = refused(*view, tmp_path / "a.png", "theses.pdf/0001")
    assert "no document 'theses.pdf' in the collection; the nearest are thesis.pdf" in message
    assert "expected a name that ends in .png" in refused(*view, tmp_path / "a.jpg", "thesis.pdf/0001")
    assert not list(tmp_path.glob("a.*"))


def test_rm_takes_what_nothing_needs_and_refuses_the_rest(chain: Chain) -> None:
    cached = chain.precache("--keep", "0.25")
    heavy = shards(chain.work, "precache")
    mmrr("rm", f"precache/{cached.name}", "--work", chain.work)
    assert not cached.exists()
    assert (
        len(shards(chain.work, "precache")) == len(heavy) - 2
    )  # one per document; the instruction's shard is still used
    old = chain.rerank("--from", f"precache/{precaches(chain)[0]}")
    assert old.exists()

    name = f"precache/{precaches(chain)[0]}"
    message = refused("rm", name, "--work", chain.work)
    assert "is needed by rerank/" in message
    assert "--cascade" in message
    assert (chain.work / name).exists()
    mmrr("rm", name, "--work", chain.work, "--cascade")
    assert precaches(chain) == []
    assert shards(chain.work, "precache") == set()
    assert list((chain.work / "rerank").glob("*/")) == []
    assert "mmrr precache" in refused("rerank", QUESTION, "--work", chain.work)


def precaches(chain: Chain) -> list[str]:
    return [path.name for path in (chain.work / "precache").glob("*/")]


def test_rm_without_names_takes_only_what_nothing_lists(chain: Chain) -> None:
    before = files(chain.work)
    mmrr("rm", "--work", chain.work)
    assert files(chain.work) == before
    stray = chain.work / "shards" / "precache" / ("0" * 24)
    stray.mkdir()
    (stray / "shard.json").write_text("{}")
    assert "removed 1 unused shard" in mmrr("rm", "--work", chain.work).stderr
    assert files(chain.work) == before
