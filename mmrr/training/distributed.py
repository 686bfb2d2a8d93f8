"""The process group of a training: rank and size, the device, and averages over all processes.

A single process needs no setup. ``accelerate launch`` starts several. This module knows tensors, not their meaning.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrr.errors import MmrrError
from mmrr.modeling.devices import resolve_device

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process and its peers. Each process takes different batches; all processes make the same step."""

    device: torch.device
    rank: int = 0
    size: int = 1
    accelerator: Accelerator | None = None

    @property
    def is_main(self) -> bool:
        """True for the process that logs and saves."""
        return self.rank == 0

    def describe(self) -> str:
        """Number and kind of devices, for example ``4 x cuda`` or ``cpu``."""
        return f"{self.size} x {self.device.type}" if self.size > 1 else self.device.type

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes. A single process gets ``values`` back."""
        if not self.accelerator:
            return values
        reduced: Tensor = self.accelerator.reduce(values, reduction="mean")  # type: ignore[no-untyped-call]
        return reduced

    def broadcast(self, parameters: Sequence[Tensor]) -> None:
        """Copy the parameters of process 0 to every process."""
        if self.accelerator:
            from accelerate.utils import broadcast

            for parameter in parameters:
                parameter.data.copy_(broadcast(parameter.data))  # type: ignore[no-untyped-call]

    def average_gradients(self, parameters: Sequence[Tensor], reported: Tensor) -> Tensor:
        """Replace each gradient by its mean over all processes; return the mean of ``reported`` (n,).

        One message carries both. A parameter without a gradient in every process keeps none, as in a single process.
        """
        if not self.accelerator:
            return reported
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in parameters
        ]
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        message = torch.cat([reported.float(), present, *(gradient.float().flatten() for gradient in gradients)])
        message = self.mean(message)
        first = len(reported) + len(parameters)
        reported, present, rest = message[: len(reported)], message[len(reported) : first], message[first:]
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, there, part in zip(parameters, present.tolist(), torch.split(rest, sizes), strict=True):
            if there:
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return reported

    def close(self) -> None:
        """Wait for all processes and end the process group."""
        if self.accelerator:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()  # type: ignore[no-untyped-call]


def join(device: str = "auto") -> ProcessGroup:
    """The process group that ``accelerate launch`` started; without it, this process alone on ``device``.

    Raises MmrrError if several processes were launched and accelerate is not installed.
    """
    if world_size() == 1:
        return ProcessGroup(resolve_device(device))
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MmrrError("several processes need accelerate; run: pip install 'mmrr[train]'") from error
    accelerator = Accelerator(cpu=device == "cpu")
    return ProcessGroup(accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator)


def world_size() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """True for process 0. The launcher's environment tells, so this works before anything is loaded."""
    return int(os.environ.get("RANK", "0")) == 0


def placed(value: Any, device: torch.device) -> Any:
    """A copy of a batch with all its tensors on ``device``. ``Any``: a batch is whatever the training makes.

    Lists, tuples, dicts and dataclasses are searched for tensors; other values are passed through.
    """
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
