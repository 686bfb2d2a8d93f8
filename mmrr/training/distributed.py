"""The processes that train together: which one this is, where it computes, and the mean over all of them.

One process needs nothing; several are started by ``accelerate launch``. Knows tensors, not what they mean.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.modeling.devices import resolve_device


@dataclass(frozen=True, slots=True)
class Crew:
    """This process among those that train the same model. Each takes other batches; all make the same step."""

    device: torch.device
    rank: int = 0
    size: int = 1
    accelerator: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that logs and saves."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes; in one process, the values themselves."""
        return self.accelerator.reduce(values, reduction="mean") if self.accelerator else values

    def same(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the first one's parameters."""
        if self.accelerator:
            from accelerate.utils import broadcast

            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))

    def average(self, parameters: Sequence[Tensor], reported: Tensor) -> Tensor:
        """Put the mean gradient of all processes into ``parameters``; the mean of ``reported`` (n,), in one message.

        A parameter that no process has a gradient for stays without one, as in a single process.
        """
        if not self.accelerator:
            return reported
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters
        ]
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        message = torch.cat([reported.float(), present, *(gradient.float().flatten() for gradient in gradients)])
        message = self.mean(message)
        head = len(reported) + len(parameters)
        reported, present, rest = message[: len(reported)], message[len(reported) : head], message[head:]
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, there, part in zip(parameters, present.tolist(), torch.split(rest, sizes), strict=True):
            if there:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return reported

    def leave(self) -> None:
        """Wait for the others and part."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


def join(device: str = "auto") -> Crew:
    """The crew that ``accelerate launch`` started, or this process alone on ``device``."""
    if processes() == 1:
        return Crew(resolve_device(device))
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MmrrError("several processes need accelerate; run: pip install 'mmrr[train]'") from error
    accelerator = Accelerator(cpu=device == "cpu")
    return Crew(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)


def processes() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this process is the first of them, by what the launcher says: known before anything is loaded."""
    return int(os.environ.get("RANK", "0")) == 0


def placed(value: Any, device: torch.device) -> Any:
    """A batch with its tensors on ``device``: tensors in lists, tuples, dicts and dataclasses; all else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {item.name: placed(getattr(value, item.name), device) for item in dataclasses.fields(value)}
        return dataclasses.replace(value, **inner)
    if isinstance(value, dict):
        return {key: placed(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(placed(inner, device) for inner in value))
    if isinstance(value, list | tuple):
        return type(value)(placed(inner, device) for inner in value)
    return value
