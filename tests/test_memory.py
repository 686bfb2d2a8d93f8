"""The memory that tensors leave stays with the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: Pages that the system gave for each of ten tensors of 64 MB, behind ten that warm up.
FAULTS = """
import resource, torch
from mmrr.cli.memory import keep_freed
{}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.ones(1 << 24)
before = faults()
for _ in range(10): torch.ones(1 << 24)
print(faults() - before)
"""


def given(line: str) -> int:
    ran = subprocess.run([sys.executable, "-c", FAULTS.format(line)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator alone is told"
)
def test_what_a_tensor_leaves_is_the_next_ones() -> None:
    assert given("keep_freed()") * 10 < given("")
