"""Calibration: a monotone map from a reranker's logits to the probability that a page is relevant.

``platt`` fits a logistic curve (Platt 1999), ``isotonic`` a step-free increasing line through pooled means (Zadrozny
and Elkan 2002); both are scikit-learn's. A calibration keeps the order of pages, except that isotonic makes ties.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmrr.errors import MmrrError

Method = Literal["platt", "isotonic"]
SCHEMA = "mmrr.calibration.1"
#: Bins of the expected calibration error: of equal width, from 0 to 1.
BINS = 10
#: (logit, relevant) of a query and a page.
Judged = Sequence[tuple[float, bool]]


@dataclass(frozen=True)
class Calibration:
    """A map from logits to probabilities, for one reranker with one setting."""

    method: Method
    #: platt: (slope, intercept). isotonic: logits and probabilities of the line's corners.
    values: tuple[list[float], list[float]]
    made_for: dict[str, Any]  # family, revision, and the settings that change logits

    def probability(self, logit: float) -> float:
        """The probability of relevance, from 0 to 1; it never falls as the logit rises."""
        first, second = self.values
        if self.method == "isotonic":
            return float(np.interp(logit, first, second))
        return _sigmoid(first[0] * logit + second[0])


def fit(judged: Judged, method: Method, made_for: dict[str, Any]) -> Calibration:
    """Fit a map. Raises MmrrError unless there are relevant and other pages, and if it would not rise."""
    # scikit-learn takes a second to import.
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    logits, labels = np.array([logit for logit, _ in judged]), np.array([relevant for _, relevant in judged])
    if labels.all() or not labels.any():
        raise MmrrError(
            f"found {int(labels.sum())} relevant pages among {len(labels)} candidates; expected relevant and other ones"
        )
    if method == "isotonic":
        line = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(logits, labels)
        return Calibration(method, (line.X_thresholds_.tolist(), line.y_thresholds_.tolist()), made_for)
    curve = LogisticRegression(C=1e6).fit(logits[:, None], labels)
    slope, intercept = float(curve.coef_[0, 0]), float(curve.intercept_[0])
    if slope <= 0:
        raise MmrrError("relevant pages have lower logits than the others: this reranker cannot be calibrated here")
    return Calibration(method, ([slope], [intercept]), made_for)


def bins(probabilities: Sequence[float], relevant: Sequence[bool]) -> list[tuple[float, float, int]]:
    """(mean probability, share of relevant pages, number of pages) of each bin that has pages."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(relevant, np.float64)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    found = [(place == at) for at in range(BINS)]
    return [(float(p[own].mean()), float(y[own].mean()), int(own.sum())) for own in found if own.any()]


def ece(probabilities: Sequence[float], relevant: Sequence[bool]) -> float:
    """The expected calibration error (Naeini et al. 2015): mean distance of probability and share, over pages."""
    found = bins(probabilities, relevant)
    return sum(n * abs(mean - share) for mean, share, n in found) / max(1, sum(n for *_, n in found))


def errors(calibration: Calibration, judged: Judged) -> tuple[float, float]:
    """The expected calibration error of the sigmoid of the logits, and of the calibrated probabilities."""
    relevant = [label for _, label in judged]
    before = ece([_sigmoid(logit) for logit, _ in judged], relevant)
    return before, ece([calibration.probability(logit) for logit, _ in judged], relevant)


def as_text(calibration: Calibration) -> str:
    """The text of a calibration file."""
    first, second = calibration.values
    stored = {"schema": SCHEMA, "method": calibration.method, "made_for": calibration.made_for}
    return json.dumps({**stored, "x": first, "y": second}, indent=2) + "\n"


def read(path: Path) -> Calibration:
    """Read a file of ``as_text``. Raises MmrrError for any other file."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["schema"] != SCHEMA or stored["method"] not in ("platt", "isotonic"):
            raise ValueError(f"schema {stored['schema']!r}, method {stored['method']!r}")
        first, second = ([float(value) for value in stored[name]] for name in ("x", "y"))
        if not first or len(first) != len(second) or not all(map(math.isfinite, [*first, *second])):
            raise ValueError("x and y are not lists of numbers of the same length")
        if sorted(first) != first and stored["method"] == "isotonic":
            raise ValueError("x does not rise")
        return Calibration(stored["method"], (first, second), dict(stored["made_for"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MmrrError(
            f"{path}: found no calibration of {SCHEMA} ({error}); expected a file of mmrr tune --calibrate"
        ) from error


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
