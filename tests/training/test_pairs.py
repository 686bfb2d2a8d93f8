"""Pairs for fine-tuning: read strictly, batched by a seed."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from mmrr.errors import MmrrError
from mmrr.training.data.pairs import ContrastiveBatches, JudgedPages, read_pairs
from tests.training.shared import GOOD, QUERIES, write_lines


def test_pairs_are_read_in_order_with_image_paths_from_their_folder(pairs_folder):
    pairs = read_pairs(pairs_folder / "pairs.jsonl")
    assert len(pairs) == 12
    assert pairs[0].query == QUERIES[0]
    assert (pairs[0].relevant, pairs[1].relevant) == (True, False)
    assert pairs[3].image == (pairs_folder / "1.png").resolve()


def test_parquet_is_the_same(pairs_folder):
    records = [json.loads(line) for line in (pairs_folder / "pairs.jsonl").read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), pairs_folder / "pairs.parquet")
    assert read_pairs(pairs_folder / "pairs.parquet") == read_pairs(pairs_folder / "pairs.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a"], "image": ["0.png"]}), pairs_folder / "less.parquet")
    with pytest.raises(MmrrError, match=r"less.parquet: found no column relevant, expected query, image, relevant"):
        read_pairs(pairs_folder / "less.parquet")
    (pairs_folder / "no.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(MmrrError, match=r"cannot read .*no.parquet"):
        read_pairs(pairs_folder / "no.parquet")
    records[1]["relevant"] = None
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), pairs_folder / "gap.parquet")
    with pytest.raises(MmrrError, match=r"gap.parquet, row 2: found no relevant"):
        read_pairs(pairs_folder / "gap.parquet")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "invalid JSON"),
        ("[1]", "found list, expected an object"),
        (json.dumps({"query": "q", "image": "0.png"}), "found no relevant"),
        (json.dumps(GOOD | {"query": " "}), "query = ' ', expected a text"),
        (json.dumps(GOOD | {"query": "\ud800"}), "unpaired surrogate"),
        (json.dumps(GOOD | {"image": 3}), "image = 3"),
        (json.dumps(GOOD | {"image": "9.png"}), "there is no image"),
        (json.dumps(GOOD | {"image": "../x.png"}), "is outside"),
        (json.dumps(GOOD | {"image": "/etc/hostname"}), "is outside"),
        (json.dumps(GOOD | {"relevant": 1}), "relevant = 1, expected true or false"),
        (json.dumps(GOOD | {"relevant": False}), "both relevant and not relevant"),
    ],
)
def test_a_bad_line_is_named_by_its_number(pairs_folder, line, problem):
    (pairs_folder / "pairs.jsonl").write_text(f"{json.dumps(GOOD)}\n\n{line}\n", "utf-8")
    with pytest.raises(MmrrError, match=r"pairs.jsonl, line 3: ") as error:
        read_pairs(pairs_folder / "pairs.jsonl")
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_folder_is_refused_and_another_root_can_be_named(pairs_folder, tmp_path):
    elsewhere = write_lines(tmp_path / "elsewhere.jsonl", [GOOD])
    with pytest.raises(MmrrError, match="there is no image"):
        read_pairs(elsewhere)
    assert read_pairs(elsewhere, pairs_folder)[0].image == (pairs_folder / "0.png").resolve()
    inner = pairs_folder / "inner"
    inner.mkdir()
    (inner / "0.png").symlink_to(pairs_folder / "0.png")
    with pytest.raises(MmrrError, match="is outside"):
        read_pairs(write_lines(inner / "pairs.jsonl", [GOOD]))


def test_each_epoch_has_every_pair_once_in_another_order(pairs_folder):
    pairs = read_pairs(pairs_folder / "pairs.jsonl")
    make, again = (JudgedPages(pairs, seed=0, pages=1, queries=2) for _ in range(2))
    assert make.groups.an_epoch == 8  # three queries a page: two and one

    def epoch(number, batches):
        groups = [batches(number * 8 + n)[0] for n in range(8)]
        return [(query, group.path) for group in groups for query in group.queries]

    first, second = epoch(0, make), epoch(1, make)
    assert sorted(first) == sorted(second) == sorted((pair.query, pair.image) for pair in pairs)
    assert first != second
    assert (epoch(1, again), epoch(0, again)) == (second, first)  # the number alone decides


def test_a_contrastive_batch_has_hard_negatives_and_excludes_other_answers(pairs_folder):
    make = ContrastiveBatches(read_pairs(pairs_folder / "pairs.jsonl"), seed=0, queries=4, negatives=2)
    relevant = {query: set(paths) for query, (paths, _) in make.by_query.items()}
    assert make.an_epoch == 4
    batch = make(0)
    assert sorted(batch.queries) == sorted([QUERIES[0], QUERIES[0], QUERIES[1], QUERIES[2]])
    assert len(batch.pages) == 4
    for query, answer, others in zip(batch.queries, batch.answers, batch.also_relevant, strict=True):
        assert answer not in others
        assert len(others) == len(relevant[query]) - 1
