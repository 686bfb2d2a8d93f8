"""Fixtures of the training tests."""

from __future__ import annotations

import pytest

from tests.training.shared import LIST_QUERIES, QUERIES, write_lines


@pytest.fixture
def pairs_folder(tmp_path, page_images):
    """Four page images, and ``pairs.jsonl`` with every pair of a query and a page; every third pair is relevant."""
    made = tmp_path / "pairs"
    made.mkdir()
    for i, image in enumerate(page_images):
        image.save(made / f"{i}.png")
    records = [
        {"query": query, "image": f"{i}.png", "relevant": (i + q) % 3 == 0, "page_id": f"doc/{i}"}
        for i in range(4)
        for q, query in enumerate(QUERIES)
    ]
    write_lines(made / "pairs.jsonl", records)
    return made


@pytest.fixture
def lists_folder(tmp_path, page_images):
    """Four page images, and ``lists.jsonl`` with three lists of them and one list of passages."""
    made = tmp_path / "lists"
    made.mkdir()
    for i, image in enumerate(page_images):
        image.save(made / f"{i}.png")
    images = [f"{i}.png" for i in range(4)]
    records = [
        {"query": LIST_QUERIES[0], "images": images, "order": [2, 0, 3], "relevant": [1], "domain": "skipped"},
        {"query": LIST_QUERIES[1], "images": images[:2], "order": [1, 0]},
        {"query": LIST_QUERIES[2], "images": images[1:], "relevant": [0, 2]},
        {"query": "boats", "passages": ["boats on the quay", "a bakery", "the quarry"], "order": [0, 2, 1]},
    ]
    write_lines(made / "lists.jsonl", records)
    return made
