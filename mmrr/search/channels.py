"""The channels of the first stage, and the weights with which their standardised scores are added.

``words`` is BM25, ``meaning`` the vectors of the text, ``sight`` the vectors of the page image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Set

from mmrr.errors import MmrrError

CHANNELS = ("words", "meaning", "sight")
#: Former names of channels. Manifests still store them.
_FORMER = {"bm25": "words", "dense": "sight"}
#: The default weights of each set of channels. docs/first-stage.md says how they were chosen.
_DEFAULT: tuple[dict[str, float], ...] = (
    {"words": 1.0, "sight": 1.0},
    {"words": 1.0, "meaning": 1.25},
    {"meaning": 1.0, "sight": 0.5},
    {"words": 1.0, "meaning": 1.25, "sight": 0.5},
)
#: What an index needs for a channel, and how it gets it.
_NEEDS = {
    "meaning": ("vectors of the pages' text", "mmrr index with --text-embedder"),
    "sight": ("page vectors", "mmrr index with --embedder"),
}


def parse(text: str, option: str = "--channels") -> dict[str, float]:
    """``words=1,meaning=1,sight=0.5`` -> weights by name. Raises MmrrError for anything else, and for a double name."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = (one.strip() for one in part.partition("="))
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not equals or not 0 <= value < math.inf or name in found:
            raise MmrrError(
                f"{option} {text[:60]}: found '{part[:40]}', expected NAME=WEIGHT as in words=1,meaning=1,sight=0.5"
            )
        found[_FORMER.get(name, name)] = value
    return found


def weights(first_stage: str | None, chosen: Mapping[str, float] | None, available: Set[str]) -> dict[str, float]:
    """The weight of each channel that is searched, by name. One channel alone has weight 1.

    ``first_stage``: a channel, ``hybrid``, or None for every channel that the index has. ``chosen``: weights that the
    user gave; a channel with weight 0 or without a weight is left out. ``available``: the channels of the index.
    Raises MmrrError for an unknown channel, for one that the index does not have, and for weights with one channel.
    """
    first_stage = _FORMER.get(first_stage or "", first_stage)
    if chosen is not None:
        return _chosen(first_stage, chosen, available)
    if first_stage not in (None, "hybrid"):
        _expect(first_stage, available)
        return {first_stage: 1.0}
    if first_stage == "hybrid" and len(available) == 1:
        raise MmrrError(
            "--first-stage hybrid needs page vectors or vectors of the pages' text, and this index has none; "
            "run mmrr index with --embedder or --text-embedder, or use --first-stage words"
        )
    return default(available)


def _chosen(first_stage: str | None, chosen: Mapping[str, float], available: Set[str]) -> dict[str, float]:
    if first_stage not in (None, "hybrid"):
        raise MmrrError(f"--channels is the weights of a sum: leave out --first-stage {first_stage}")
    unknown = sorted(set(chosen) - set(CHANNELS))
    if unknown:
        raise MmrrError(f"no channel '{unknown[0]}'; expected some of: {', '.join(CHANNELS)}")
    used = {name: float(chosen[name]) for name in CHANNELS if chosen.get(name)}
    if not used:
        raise MmrrError("every channel has weight 0; expected one above 0")
    for name in used:
        _expect(name, available)
    return used if len(used) > 1 else dict.fromkeys(used, 1.0)


def default(available: Collection[str]) -> dict[str, float]:
    """The default weights of these channels."""
    return next((dict(one) for one in _DEFAULT if set(one) == set(available)), dict.fromkeys(available, 1.0))


def sums(available: Set[str]) -> list[tuple[str, ...]]:
    """Each channel alone, then each sum of several, in the order of ``CHANNELS``."""
    known = [name for name in CHANNELS if name in available]
    return [names for size in range(1, len(known) + 1) for names in itertools.combinations(known, size)]


def stored_name(used: Mapping[str, float]) -> str:
    """The first stage as manifests store it: the former name of a single channel, else ``hybrid``."""
    former = {new: old for old, new in _FORMER.items()}
    return "hybrid" if len(used) > 1 else next(former.get(name, name) for name in used)


def is_former_sum(used: Mapping[str, float]) -> bool:
    """Whether manifests store no weights: for one channel, and for words and sight with weight 1 each."""
    return len(used) == 1 or dict(used) == {"words": 1.0, "sight": 1.0}


def _expect(name: str, available: Set[str]) -> None:
    if name in available:
        return
    what, how = _NEEDS[name]
    raise MmrrError(
        f"--first-stage {name} needs {what}, and this index has none; run {how}, or use --first-stage words"
    )
