"""Fixtures shared by the tests: one tiny checkpoint in the genuine format, a few page images."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests never use the network: a checkpoint that is not on this disk is an error.
os.environ["HF_HUB_OFFLINE"] = "1"
# A model of text that happens to be installed must not change what tests index; tests of it name it.
os.environ["MMRR_TEXT_EMBEDDER"] = "none"
# The user's defaults must not change what tests do.
os.environ["MMRR_CONFIG"] = os.devnull
# Typer colours its messages on CI machines, which would hide words from tests.
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
# Also for processes that tests start: on a busy machine, waiting threads make tiny models ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from PIL import Image, ImageDraw

import mmrr
from mmrr.modeling.checkpoints import Checkpoint, resolve
from mmrr.workspace.files import HashCache
from tests.tiny import late, write_checkpoint

#: Number that is added to every seed of the tests. A test has to pass with any random weights.
SEED_SHIFT = 1000 * int(os.environ.get("MMRR_TEST_SEED", "0"))
set_seed = torch.manual_seed


def shifted_seed(seed: int) -> torch.Generator:
    """``torch.manual_seed`` that shifts seeds set by tests and their helpers. Seeds set by the package stay."""
    by_a_test = sys._getframe(1).f_globals["__name__"].startswith("tests.")
    return set_seed(seed + SEED_SHIFT if by_a_test else seed)


torch.manual_seed = shifted_seed


def pytest_configure() -> None:
    """Raises UsageError if ``MMRR_TEST_INSTALLED`` is set and the package comes from the checkout."""
    package, checkout = Path(mmrr.__file__).resolve().parent, Path(__file__).resolve().parents[1]
    if os.environ.get("MMRR_TEST_INSTALLED") and package.parent == checkout:
        raise pytest.UsageError(f"the tests import {package}, not an installed mmrr; run them with: make test-wheel")
    if str(checkout) not in sys.path:
        sys.path.append(str(checkout))  # spawned processes import helpers from tests/; the installed mmrr comes first


#: Font files of matplotlib, with family, style and spacing in the format of fontconfig's fc-list.
FONTS = {
    "DejaVuSans.ttf": "DejaVu Sans|Book|",
    "DejaVuSans-Bold.ttf": "DejaVu Sans|Bold|",
    "DejaVuSans-Oblique.ttf": "DejaVu Sans|Oblique|",
    "DejaVuSansMono.ttf": "DejaVu Sans Mono|Book|100",
    "DejaVuSansMono-Bold.ttf": "DejaVu Sans Mono|Bold|100",
    "DejaVuSerif.ttf": "DejaVu Serif|Book|",
    "DejaVuSerif-Bold.ttf": "DejaVu Serif|Bold|",
    "DejaVuSerif-Italic.ttf": "DejaVu Serif|Italic|",
}


@pytest.fixture(scope="session", autouse=True)
def same_fonts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Puts an ``fc-list`` on PATH that lists matplotlib's fonts only: drawn pages are equal on every machine."""
    spec = importlib.util.find_spec("matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else Path("none")
    lines = [f"{folder / file}|{names}\n" for file, names in FONTS.items() if (folder / file).exists()]
    program = tmp_path_factory.mktemp("programs") / "fc-list"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{''.join(lines)}END\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        yield


@pytest.fixture(autouse=True)
def no_installed_text_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MMRR_TEXT_EMBEDDER above, for the Python API, which does not read it."""
    monkeypatch.setattr("mmrr.modeling.text_checkpoints.packaged", lambda: None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts with the same random numbers, independent of the tests before it in this process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "reranker", layers=6)


@pytest.fixture(scope="session")
def tiny_embedder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model than the reranker, whose template appends an end-of-text token as the published embedder's may."""
    return write_checkpoint(
        tmp_path_factory.mktemp("tiny") / "embedder", layers=4, seed=1, end_of_text_after_prompt=True
    )


@pytest.fixture
def tiny(tiny_path: Path, tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_path), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture
def tiny_embedder(tiny_embedder_path: Path, tmp_path: Path) -> Checkpoint:
    return resolve(str(tiny_embedder_path), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture
def tiny_late(tiny_embedder_path: Path, tmp_path: Path) -> Checkpoint:
    """The same embedder with late interaction."""
    return resolve(str(late(tiny_embedder_path, tmp_path / "late")), None, HashCache(tmp_path / "hashes.json"))


@pytest.fixture(scope="session")
def page_images() -> list[Image.Image]:
    """Four pages on different grids: portrait, landscape, square, small."""
    images = []
    for i, (width, height) in enumerate([(160, 224), (256, 128), (192, 192), (64, 96)]):
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        for line in range(4, height - 10, 14):
            draw.text((4 + 3 * i, line), f"page {i} line {line} lorem ipsum", fill=(10 * i, 40 * i, 90))
        draw.rectangle((width // 3, height // 3, width // 2, height // 2), fill=(200, 30 * i, 60))
        images.append(image)
    return images


CPU = torch.device("cpu")
