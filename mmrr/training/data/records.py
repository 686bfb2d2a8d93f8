"""Reading of training files (JSON Lines, images), and items in a new order each epoch. Knows files, not models."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

from PIL import Image

from mmrr.errors import MmrrError
from mmrr.evaluation.trec import lines

T = TypeVar("T")


def read_json_lines(path: Path, expected: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The place (file name and line) of each object, and the object. ``expected``: its fields, for error messages.

    Raises:
        MmrrError: The file cannot be read or is empty, or a line is not a JSON object. The message has its number.
    """
    for n, line in lines(path):
        place = f"{path.name}, line {n}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise MmrrError(f"{place}: invalid JSON ({error}), expected {expected}") from error
        if not isinstance(record, Mapping):
            raise MmrrError(f"{place}: found {type(record).__name__}, expected an object with {expected}")
        yield place, record


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def is_unicode(text: str) -> bool:
    """Whether a text has no unpaired surrogates, which JSON may have and UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_inside(root: Path, relative: Path, place: str) -> Path:
    """The absolute path of an existing image in the folder ``root``. ``place``: the first words of an error message.

    Raises:
        MmrrError: The path is invalid or outside the folder, or there is no such file.
    """
    try:
        found = (root / relative).resolve()
        exists = found.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise MmrrError(f"{place}: {str(relative)!r} is not a valid path: {error}") from error
    if not found.is_relative_to(root):
        raise MmrrError(f"{place}: {relative} is outside {root}; name the folder of the images with `images`")
    if not exists:
        raise MmrrError(f"{place}: there is no image {found}; paths are relative to {root}")
    return found


def open_image(path: Path) -> Image.Image:
    """A page image (RGB). Raises MmrrError if the file cannot be opened as an image."""
    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise MmrrError(f"{path} cannot be opened as an image: {error}") from error


class EpochOrder(Generic[T]):
    """Each item once an epoch. The order of an epoch depends on the seed and the epoch only."""

    def __init__(self, items: Sequence[T], seed: int) -> None:
        self.items, self.seed = items, seed
        #: The last epoch that was asked for, and its items in order.
        self._last: tuple[int, list[T]] | None = None

    def order(self, epoch: int) -> list[T]:
        """The items in the order of an epoch."""
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self._shuffled(random.Random(f"{self.seed}/epoch/{epoch}"))
        return self._last[1]

    def batch(self, number: int, size: int) -> list[T]:
        """The items of batch ``number``; batches of ``size`` items run on from one epoch to the next."""
        return [self[place] for place in range(number * size, (number + 1) * size)]

    def __len__(self) -> int:
        """Items of an epoch."""
        return len(self.items)

    def __getitem__(self, place: int) -> T:
        """Item ``place`` of all epochs in a row."""
        return self.order(place // len(self))[place % len(self)]

    def _shuffled(self, rng: random.Random) -> list[T]:
        return rng.sample(self.items, len(self.items))
