"""Ranked lists for ZipRerank: read strictly, shuffled by a seed; passages drawn as images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.training.data import passage_images
from mmrr.training.data.ranked_lists import RankedList, RankedLists, ranking, read_lists
from tests.training.shared import LIST_QUERIES, write_lines


def test_an_order_is_filtered_before_it_is_cut():
    """A teacher's order of 20 candidates, cut to 10: the order of the remaining candidates is kept."""
    order = (*range(19, 9, -1), 3, 1, 0, 2)
    assert ranking(4, order, ()) == [3, 1, 0, 2]
    assert ranking(4, order, (2, 17)) == [2, 3, 1, 0]
    assert ranking(4, (3,), ()) == [3, 0, 1, 2]


def test_lists_are_read_in_order(lists_folder):
    lists = read_lists(lists_folder / "lists.jsonl")
    assert [len(one.candidates) for one in lists] == [4, 2, 3, 3]
    assert lists[0] == RankedList(
        LIST_QUERIES[0], tuple((lists_folder / f"{i}.png").resolve() for i in range(4)), (2, 0, 3), (1,)
    )
    assert lists[3].candidates[0] == "boats on the quay"


GOOD = {"query": "q", "images": ["0.png", "1.png"], "order": [1, 0]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"query": " "}, "query = ' ', expected a text"),
        ({"query": "\ud800"}, "expected a text"),
        ({"images": None}, "neither of images and passages"),
        ({"passages": ["a", "b"]}, "both of images and passages"),
        ({"images": ["0.png"]}, "expected a list of two or more"),
        ({"images": ["0.png", 3]}, "images holds 3, expected a path"),
        ({"images": None, "passages": ["a", ""]}, "passages holds '', expected a text"),
        ({"images": ["0.png", "9.png"]}, "there is no image"),
        ({"images": ["0.png", "../x.png"]}, "is outside"),
        ({"order": [0, 2]}, "order = [0, 2], expected indices of the candidates, 0 to 1"),
        ({"order": [True, 0]}, "expected indices"),
        ({"relevant": [1, 1]}, "expected each candidate once"),
        ({"order": []}, "order and relevant are both empty"),
    ],
)
def test_a_bad_line_is_named_by_its_number(lists_folder, change, problem):
    write_lines(lists_folder / "bad.jsonl", [GOOD, GOOD | change])
    with pytest.raises(MmrrError, match=r"bad.jsonl, line 2: ") as error:
        read_lists(lists_folder / "bad.jsonl")
    assert problem in str(error.value)


def test_candidates_are_shuffled_each_time_with_their_order_and_labels(lists_folder):
    lists = read_lists(lists_folder / "lists.jsonl")[:1]
    pixels = [np.asarray(Image.open(path)).tobytes() for path in lists[0].candidates]
    make, again = (RankedLists(lists, 0, 1, 20, True) for _ in range(2))
    seen = set()
    for number in range(12):
        (shown,) = make(number)
        places = [pixels.index(np.asarray(page).tobytes()) for page in shown.pages]
        seen.add(tuple(places))
        assert [places[place] for place in shown.ranking] == [1, 2, 0, 3]
        assert [places[place] for place in shown.relevant] == [1]
        assert again(number)[0].ranking == shown.ranking
    assert len(seen) > 4
    (fixed,) = RankedLists(lists, 0, 1, 3, False)(5)
    assert (len(fixed.pages), fixed.ranking, fixed.relevant) == (3, (1, 2, 0), (1,))


# Passages


def text(letters: int) -> str:
    return ("quay berth of boats over 12 metres and " * (letters // 39 + 1))[:letters]


def test_passages_are_squares_whose_letters_shrink_before_text_is_cut():
    sizes = {n: passage_images.fitting_size(text(n)) for n in (20, 100, 350, 700, 1200)}
    assert sizes[350] == 12
    assert sizes[20] >= sizes[100] > 12 > sizes[700] > sizes[1200] >= 6
    for n, size in sizes.items():
        rows = list(passage_images.wrapped(text(n), size))
        assert len(rows) * passage_images.line_px(size) <= 240
        assert " ".join(rows).split() == text(n).split()  # nothing is cut off
        image = np.asarray(passage_images.draw_passage(text(n)).convert("L"))
        assert image.shape == (280, 280)
        dark = np.argwhere(image < 128)
        assert dark.min() >= 19
        assert dark.max() <= 261
    assert passage_images.fitting_size(text(4000)) == 6
    assert np.argwhere(np.asarray(passage_images.draw_passage(text(4000)).convert("L")) < 128).max() <= 261
    assert [row[-1] for row in list(passage_images.wrapped("x" * 90, 12))[:-1]] == ["-", "-"]
