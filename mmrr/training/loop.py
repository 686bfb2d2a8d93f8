"""The training loop: schedule, log, checkpoint, resume. Knows optimizers and files, not what a model learns.

A batch depends on its number alone. A resumed run therefore gets the batches that it would have seen without the
interruption, and a saved state holds only weights, optimizer state and step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmrr.errors import MmrrError
from mmrr.training.distributed import ProcessGroup, placed
from mmrr.workspace.files import flush, write_atomically
from mmrr.workspace.tensor_files import save_tensors

#: The result of one batch: first the loss to minimise, then further values for the log.
Losses = dict[str, Tensor]
#: A line of the log, or the progress of a stage before the training (with ``stage``): name -> value.
Record = dict[str, float | str]
Records = Iterator[Record]
#: Receives one line of text for the user.
Tell = Callable[[str], None]
#: Batch number -> batch. ``Any``: each training has its own batches.
MakeBatch = Callable[[int], Any]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rate: linear warm-up to ``lr``, constant, then linear to 0 over the last ``decay`` of the steps.

    A constant phase, unlike a cosine over the whole run, lets a run be prolonged: only the decay is repeated. With
    ``cosine`` the rate follows a cosine from ``lr`` to 0 after the warm-up.
    """

    steps: int
    lr: float
    warmup: int = 200  # steps
    decay: float = 0.25  # share of the steps
    weight_decay: float = 0.02
    clip: float = 1.0  # largest norm of the gradient
    save_every: int = 250  # steps
    cosine: bool = False

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.cosine:
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))
        tail = max(1, round(self.steps * self.decay))
        return self.lr * min(1.0, max(0.0, (self.steps - step) / tail))


class RunFolder:
    """A training run on disk: ``state.safetensors`` (weights, optimizer, step) and ``log.jsonl``."""

    def __init__(self, path: Path, *, trained_only: bool = False) -> None:
        """``trained_only``: save the trained weights only, not the frozen ones."""
        self.path, self.trained_only = path, trained_only
        path.mkdir(parents=True, exist_ok=True)
        self.state, self.log_file = path / "state.safetensors", path / "log.jsonl"

    def log(self, record: Record) -> None:
        """Append a record to the log."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def saved(self) -> int:
        """The step of the saved state; 0 if there is no state."""
        if not self.state.exists():
            return 0
        with safe_open(self.state, framework="pt") as file:
            return int(file.get_tensor("step"))

    def rewind(self, step: int) -> None:
        """Remove the log lines behind ``step``: a resumed run repeats those steps."""
        if not self.log_file.exists():
            return
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            write_atomically(self.log_file, "".join(line + "\n" for line in kept))

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write weights, optimizer state and step; a crash leaves the previous state intact."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        weights = model.state_dict()
        if self.trained_only:
            trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            weights = {name: value for name, value in weights.items() if name in trained}
        tensors = {f"model.{name}": value.contiguous() for name, value in weights.items()}
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():
                tensors[f"optimizer.{key}.{names[id(parameter)]}"] = value
        tensors["step"] = torch.tensor(step)
        scratch = self.state.with_suffix(".new")
        save_tensors({name: tensors[name] for name in _unshared(tensors)}, scratch)
        flush(scratch)
        os.replace(scratch, self.state)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the saved state into ``model`` and ``optimizer``; return its step, 0 in a new run.

        Raises MmrrError if the state is damaged or belongs to another model.
        """
        if not self.state.exists():
            return 0
        try:
            with safe_open(self.state, framework="pt") as file:
                step = int(file.get_tensor("step"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MmrrError(f"{self.state} cannot be read ({error}); use another run folder") from error
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        try:
            unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        except RuntimeError as error:
            raise MmrrError(f"{self.state} belongs to another model; use another run folder") from error
        if unknown:
            raise MmrrError(f"{self.state} belongs to another model ({unknown[0]}); use another run folder")
        for name, parameter in model.named_parameters():
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{key}.{name}" in tensors:
                    moments[key] = tensors[f"optimizer.{key}.{name}"].to(parameter.device)
            if moments:
                optimizer.state[parameter] = moments
        return step


@contextlib.contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Lock a run folder. Raises MmrrError if another process holds the lock: two would overwrite each other's state."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MmrrError(f"another mmrr train is at work in {run}; wait for it, or use another run folder") from error
    with lock:
        yield


class Steps(Dataset[Any]):
    """Maps batch numbers to batches, so that the workers of a DataLoader can prepare them ahead."""

    def __init__(self, make: MakeBatch, first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Any:
        return self.make(self.first + index)


@dataclass(frozen=True, slots=True)
class _Share:
    """The batches of one process: every n-th, so that all n processes together see what a single process would."""

    make: MakeBatch
    rank: int
    size: int

    def __call__(self, number: int) -> Any:
        return self.make(number * self.size + self.rank)


def batches(make: MakeBatch, first: int, last: int, workers: int) -> Iterable[Any]:
    """``make(number)`` for the numbers ``first`` to ``last`` - 1, in order, prepared ahead by ``workers`` processes."""
    loader: DataLoader[Any] = DataLoader(
        Steps(make, first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    return loader


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the loop needs to know of a training.

    ``model`` is on the device of the process group. Batch n of step s is ``make_batch(s * accumulate + n)``; the
    processes of a group share out the batches of a step. With ``autocast`` None the losses are computed in the model's
    own number format.
    """

    model: nn.Module
    schedule: Schedule
    make_batch: MakeBatch
    losses: Callable[[Any], Losses]  # Any: the batch that ``make_batch`` makes
    evaluate: Callable[[], dict[str, float]] | None = None
    evaluate_every: int = 500
    workers: int = 1  # processes that prepare batches
    accumulate: int = 1  # batches a step
    autocast: torch.dtype | None = torch.bfloat16
    log_every: int = 10  # steps


def train(run: RunFolder, training: Training, group: ProcessGroup | None = None) -> Records:
    """Run the loop from the last saved state; yield a record every ``log_every`` steps and write it to the log.

    Only the main process logs and saves; all processes yield. Without ``group`` the training runs on the CPU. Raises
    MmrrError if the loss is not finite or the saved state belongs to another model.
    """
    group = group or ProcessGroup(torch.device("cpu"))
    model, schedule = training.model, training.schedule
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(parameters, schedule)
    first = run.restore(model, optimizer)
    if group.is_main:
        run.rewind(first)
    if first >= schedule.steps:
        return
    group.broadcast(parameters)
    model.train()
    make = training.make_batch if group.size == 1 else _Share(training.make_batch, group.rank, group.size)
    each = training.accumulate
    loader = iter(batches(make, first * each, schedule.steps * each, training.workers))
    sums: dict[str, float] = {}
    began, count = time.monotonic(), 0
    for step in range(first, schedule.steps):
        for settings in optimizer.param_groups:
            settings["lr"] = schedule.rate(step)
        reported = _backward(training, group, parameters, loader)
        if not math.isfinite(loss := next(iter(reported.values()))):
            raise MmrrError(f"the loss is {loss} at step {step}; the last state saved is in {run.path}")
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in reported.items():
            sums[name] = sums.get(name, 0.0) + value
        count += 1
        done = step + 1
        # Every saved state ends a record, so that a resumed run begins a new one.
        saves = done % schedule.save_every == 0 or done == schedule.steps
        if done % training.log_every == 0 or saves:
            record: Record = {"step": done, **{name: round(value / count, 5) for name, value in sums.items()}}
            record |= {"lr": schedule.rate(step), "norm": round(float(norm), 4)}
            record |= {"s_per_step": round((time.monotonic() - began) / count, 4), "steps": schedule.steps}
            if done % training.evaluate_every == 0 or done == schedule.steps:
                record |= _evaluated(training, group)
            if group.is_main:
                run.log(record)
            yield record
            sums, count, began = {}, 0, time.monotonic()
        if saves and group.is_main:
            run.save(done, model, optimizer)


def _optimizer(parameters: Sequence[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW; weight decay applies to matrices, not to biases, norms and scales."""
    decayed = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98), fused=True)


def _backward(
    training: Training, group: ProcessGroup, parameters: Sequence[nn.Parameter], loader: Iterator[Any]
) -> dict[str, float]:
    """Gradients of one step, averaged over batches and processes; returns the mean of each loss."""
    names: list[str] = []
    reported: Tensor | float = 0.0
    for _ in range(training.accumulate):
        batch = _next(loader)
        if group.device.type != "cpu":
            batch = placed(batch, group.device)
        with mixed(group.device, training.autocast):
            found = training.losses(batch)
        (next(iter(found.values())) / training.accumulate).backward()  # type: ignore[no-untyped-call]
        names = list(found)
        values = torch.stack([value.detach().float() for value in found.values()])
        reported = reported + values / training.accumulate
    assert isinstance(reported, Tensor)
    reported = group.average_gradients(parameters, reported)
    return dict(zip(names, reported.tolist(), strict=True))


def _evaluated(training: Training, group: ProcessGroup) -> dict[str, float]:
    """The measures of ``training.evaluate``, rounded for the log; none where there is nothing to measure on."""
    if not training.evaluate:
        return {}
    training.model.eval()
    with torch.inference_mode(), mixed(group.device, training.autocast):
        measured = {name: round(value, 5) for name, value in training.evaluate().items()}
    training.model.train()
    return measured


def _next(loader: Iterator[Any]) -> Any:
    """The next batch. A worker's error arrives with its traceback as message; only the last line is the error."""
    try:
        return next(loader)
    except MmrrError as error:
        message = str(error).strip().splitlines()[-1]
        raise MmrrError(message.removeprefix(f"{MmrrError.__module__}.{MmrrError.__name__}: ")) from error


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype``; None turns off an autocast that is on outside."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _step_of(line: str) -> float:
    """The step of a log line; infinity for a line that a kill cut short, so that ``rewind`` removes it."""
    try:
        return float(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return float("inf")


def _unshared(tensors: dict[str, Tensor]) -> list[str]:
    """One name for each memory block: safetensors refuses tied weights under two names."""
    first: dict[tuple[str, int], str] = {}
    for name, tensor in tensors.items():
        first.setdefault((str(tensor.device), tensor.data_ptr()), name)
    return list(first.values())


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
