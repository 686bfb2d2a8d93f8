"""Renders the chat template of a checkpoint with limits of time, memory and length.

A template is a program of somebody else: two nested loops run for hours, and one expression takes all memory. It is
therefore rendered in a process of its own, ``_render_template``, which is stopped when it takes too much.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from mmrr.errors import MmrrError

_PROGRAM = Path(__file__).with_name("_render_template.py")
#: Limits of one template: processor time, waiting time on a busy machine, and memory with the interpreter's own.
CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 4, 60, 1 << 30


def render(template: str, values: Mapping[str, object], *, own: bool = False) -> str:
    """What the template renders from these values (JSON). Equal calls of one process render once.

    ``own``: the template comes with mmrr. It is rendered in this process, without limits.
    Raises MmrrError for a template that is no valid one, that refuses the values, or that exceeds a limit.
    """
    return _render_here(template, json.dumps(values)) if own else _render(template, json.dumps(values))


@functools.lru_cache(maxsize=512)
def _render_here(template: str, values: str) -> str:
    from mmrr.modeling import _render_template

    return _render_template.environment().from_string(template).render(**json.loads(values))


@functools.lru_cache(maxsize=512)
def _render(template: str, values: str) -> str:
    request = {"template": template, "seconds": CPU_SECONDS, "bytes": MEMORY_BYTES, "values": json.loads(values)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM)],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:  # a stopped program writes nothing
        raise MmrrError(
            f"the chat template was stopped: it takes more than {CPU_SECONDS} s, or more than "
            f"{MEMORY_BYTES >> 30} GiB; use the template that belongs to the checkpoint"
        ) from error
    except OSError as error:
        raise MmrrError(f"{sys.executable} cannot be started to render the chat template: {error.strerror}") from error
    if "error" in answer:
        raise MmrrError(f"the chat template does not render: {answer['error']}")
    return str(answer["text"])
