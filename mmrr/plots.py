"""Figures: a page with its kept tokens, and the curves of a training log.

This module knows images and numbers, but no workspace and no models.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrr.errors import MmrrError
from mmrr.types import KeptTokens

#: Opacity of a dropped token, and the colour of the paper under it.
_OPACITY, _PAPER = 0.18, (236, 238, 244)


def kept_tokens(image: Image.Image, kept: KeptTokens) -> Image.Image:
    """The page (RGB, any size) with all dropped tokens faded out."""
    rows, columns = kept.grid
    mask = np.zeros(rows * columns, dtype=np.uint8)
    mask[kept.indices.numpy()] = 255
    shown = Image.fromarray(mask.reshape(rows, columns)).resize(image.size, Image.Resampling.NEAREST)
    faded = Image.blend(Image.new("RGB", image.size, _PAPER), image.convert("RGB"), _OPACITY)
    return Image.composite(image.convert("RGB"), faded, shown)


_COLUMNS, _WIDTH, _HEIGHT = 3, 4.2, 2.8  # columns of panels; size of a panel in inches
#: Keys of a log record that are not drawn: the step itself, and constants.
_SKIPPED = ("step", "steps", "s_per_step")
_SMOOTHED = 60  # a curve with more points is drawn pale, with its running mean


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A line that a kill cut short is left out. Raises MmrrError if there is no record."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MmrrError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    if not records:
        raise MmrrError(f"{path} has no record with a step; expected the log of a training that has run some steps")
    return records


# Any: matplotlib is optional, so its types are not available.
def new_figure(**options: Any) -> Any:
    """A matplotlib figure. Raises MmrrError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MmrrError("figures need matplotlib, which is not installed; run: pip install 'mmrr[train]'") from error
    return Figure(**options)


def draw_curves(log: Path, picture: Path) -> Path:
    """Draw one panel per number in the log over the steps, as PNG. Raises MmrrError if matplotlib is not installed."""
    records = read_log(log)
    names = list(dict.fromkeys(name for record in records for name in record if name not in _SKIPPED))
    curves = {name: _curve(records, name) for name in names}
    curves = {name: curve for name, curve in curves.items() if curve[0]}
    rows = math.ceil(len(curves) / _COLUMNS)
    figure = new_figure(figsize=(_COLUMNS * _WIDTH, rows * _HEIGHT), layout="constrained")
    for place, (name, (steps, values)) in enumerate(curves.items(), 1):
        panel = figure.add_subplot(rows, _COLUMNS, place)
        many = len(steps) > _SMOOTHED
        panel.plot(steps, values, color="tab:blue", alpha=0.3 if many else 1.0, marker="" if len(steps) > 30 else ".")
        if many and name != "lr":
            panel.plot(steps, _running_mean(values, len(values) // 30), color="tab:blue")
        elif many:
            panel.lines[0].set_alpha(1.0)
        panel.set_title(name)
        panel.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.savefig(picture, dpi=110)
    return picture


def _curve(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = {
        int(record["step"]): float(record[name])
        for record in records
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    }
    return list(found), list(found.values())


def _running_mean(values: list[float], window: int) -> list[float]:
    """The mean of the last ``window`` values at each place."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    firsts = [max(0, i + 1 - window) for i in range(len(values))]
    return [(sums[i + 1] - sums[first]) / (i + 1 - first) for i, first in enumerate(firsts)]
