"""A document to draw, and a style without chance, for the tests of drawn pages."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from mmrr.training.synthetic import typesetting
from mmrr.training.synthetic.sources import Block, Document
from mmrr.training.synthetic.style import Style, choose_style

TEXT = "The harbour office keeps a list of every boat that has asked for a berth in the last three winters. " * 6
CODE = "def berth(boat):\n    if boat.length > 12:\n        return None\n    return boat.number\n"
ROWS = (("Boat", "Length", "Berth"), *((f"Boat {n} of the fleet", f"{n}.5", f"B{n}") for n in range(1, 5)))
BLOCKS = (
    Block("heading", "Berths for the winter"),
    Block("text", TEXT),
    Block("list", "first come\nfirst served\nno boats on trailers"),
    Block("code", CODE),
    Block("table", rows=ROWS),
)
DOCUMENT = Document("harbour", "made-up", "The harbour book", BLOCKS * 2, ())

_PLAIN = {
    "paper": (255, 255, 255),
    "ink": (0, 0, 0),
    "accent": (0, 0, 0),
    "zebra": False,
    "figures": 0.0,
    "banners": False,
    "boxes": 0.0,
}


def fix_style(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Replace parts of every chosen style: black on white, no pictures, bands or boxes, and ``values``."""

    def choose(rng: random.Random, title: str) -> Style:
        return dataclasses.replace(choose_style(rng, title), **_PLAIN | values)

    monkeypatch.setattr(typesetting, "choose_style", choose)


def letters(words: list[str]) -> str:
    """The characters of words without spaces."""
    return "".join("".join(words).split())
