"""Training files are read with the place of each record; every epoch has every item once."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrr.errors import MmrrError
from mmrr.training.data.records import EpochOrder, image_inside, is_unicode, read_json_lines


def test_records_have_their_line_and_bad_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json_lines(path, "a")) == [
        ("records.jsonl, line 1", {"a": 1}),
        ("records.jsonl, line 3", {"a": 2}),
    ]
    path.write_text('{"a": 1}\n[]\n')
    with pytest.raises(MmrrError, match=r"records\.jsonl, line 2: found list, expected an object with a, b"):
        list(read_json_lines(path, "a, b"))
    path.write_text("{")
    with pytest.raises(MmrrError, match=r"records\.jsonl, line 1: invalid JSON \(.*\), expected a"):
        list(read_json_lines(path, "a"))


def test_unpaired_surrogates_are_not_unicode() -> None:
    assert [is_unicode(text) for text in ("a", "\U0001f4c4", "\ud83d", "\ud83d\udcc4")] == [True, True, False, False]


def test_an_image_must_be_an_existing_file_of_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "0.png").touch()
    (tmp_path / "1.png").touch()
    (root / "link.png").symlink_to(tmp_path / "1.png")
    assert image_inside(root, Path("0.png"), "here") == root / "0.png"
    for name, problem in (
        ("9.png", "no image"),
        ("../1.png", "outside"),
        ("link.png", "outside"),
        ("\0", "(valid path|no image)"),
    ):
        with pytest.raises(MmrrError, match=f"^here: .*{problem}"):
            image_inside(root, Path(name), "here")


def test_each_epoch_has_each_item_once_whatever_was_asked_before() -> None:
    items = [f"item {n}" for n in range(7)]
    order, again = EpochOrder(items, 5), EpochOrder(items, 5)
    batches = [order.batch(number, 3) for number in range(7)]
    flat = [item for batch in batches for item in batch]
    epochs = [flat[at : at + 7] for at in (0, 7, 14)]
    assert all(sorted(epoch) == items for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [again.batch(number, 3) for number in (6, 0, 3)] == [batches[number] for number in (6, 0, 3)]
    assert EpochOrder(items, 6).order(0) != epochs[0]
