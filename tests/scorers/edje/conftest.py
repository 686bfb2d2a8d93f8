"""Tiny checkpoints of EDJE and of its vision encoder."""

from __future__ import annotations

import pytest
import torch

from mmrr.modeling.checkpoints import resolve
from mmrr.scorers import edje
from mmrr.workspace.files import HashCache
from tests.scorers.edje.reference import Original, scorer_of, write_edje, write_vision


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(3)
    return Original()


@pytest.fixture(scope="module")
def vision_path(tmp_path_factory):
    return write_vision(tmp_path_factory.mktemp("siglip") / "siglip")


@pytest.fixture(scope="module")
def edje_path(tmp_path_factory, original):
    return write_edje(tmp_path_factory.mktemp("edje") / "edje", original)


@pytest.fixture
def hashes(tmp_path):
    return HashCache(tmp_path / "hashes.json")


@pytest.fixture
def found(edje_path, hashes):
    return resolve(str(edje_path), None, hashes, edje.SPEC.model_types)


@pytest.fixture
def scorer(found, vision_path):
    return scorer_of(found, vision_path)
