"""The command line keeps freed memory in the process, so that the next tensor uses it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

#: Prints how many new memory pages the system gave for ten tensors of 64 MB, after ten others.
COUNT_FAULTS = """
import resource, torch
from mmrr.cli.terminal import keep_freed_memory
{}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): torch.ones(1 << 24)
before = faults()
for _ in range(10): torch.ones(1 << 24)
print(faults() - before)
"""


def page_faults(line: str) -> int:
    code = COUNT_FAULTS.format(line)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has this setting"
)
def test_freed_memory_is_used_again() -> None:
    assert page_faults("keep_freed_memory()") * 10 < page_faults("")
