"""The training loop: schedule, log, checkpoint, resume. Knows optimisers and files, not what is being learnt.

A batch is a function of its number alone, so a run that was killed goes on with the batches it would have seen:
weights, optimiser state and step are all there is to restore.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmrr.errors import MmrrError
from mmrr.training.distributed import Crew, placed
from mmrr.workspace.files import flush, save_tensors, write_atomically

#: What one step reports: the loss to minimise first, then whatever is worth a column in the log.
Losses = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up to ``lr``, hold it, and fall to nothing over the last ``decay`` of the steps.

    Holding rather than a cosine over the whole run lets a run be prolonged: only its tail is repeated.
    """

    steps: int
    lr: float
    warmup: int = 200
    decay: float = 0.25
    weight_decay: float = 0.02
    clip: float = 1.0
    save_every: int = 250
    cosine: bool = False

    def rate(self, step: int) -> float:
        """Learning rate of this step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.cosine:
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))
        tail = max(1, round(self.steps * self.decay))
        return self.lr * min(1.0, max(0.0, (self.steps - step) / tail))


class RunFolder:
    """One training run on disk: ``state.safetensors`` (weights, optimiser, step) and ``log.jsonl``."""

    def __init__(self, path: Path, *, trained_only: bool = False) -> None:
        """``trained_only``: keep the weights that are trained, not the frozen ones beside them."""
        self.path, self.trained_only = path, trained_only
        path.mkdir(parents=True, exist_ok=True)
        self.state, self.log_file = path / "state.safetensors", path / "log.jsonl"

    def log(self, record: dict[str, Any]) -> None:
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def saved(self) -> int:
        """The step of the state there is; 0: none."""
        if not self.state.exists():
            return 0
        with safe_open(self.state, framework="pt") as file:
            return int(file.get_tensor("step"))

    def rewind(self, step: int) -> None:
        """Take from the log what a run did after the state it goes on from: those steps come again."""
        if not self.log_file.exists():
            return
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        if kept != lines:
            write_atomically(self.log_file, "".join(line + "\n" for line in kept))

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
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
        """Put back what was saved last; the step to go on with, 0 in a new run. Raises MmrrError if it does not fit."""
        if not self.state.exists():
            return 0
        try:
            with safe_open(self.state, framework="pt") as file:
                step = int(file.get_tensor("step"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise MmrrError(f"{self.state} cannot be read ({error}); use another --run folder") from error
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        try:
            unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        except RuntimeError as error:
            raise MmrrError(f"{self.state} is of another model; use another --run folder") from error
        if unknown:
            raise MmrrError(f"{self.state} is of another model ({unknown[0]}); use another --run folder")
        for name, parameter in model.named_parameters():
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{key}.{name}" in tensors:
                    moments[key] = tensors[f"optimizer.{key}.{name}"].to(parameter.device)
            if moments:
                optimizer.state[parameter] = moments
        return step


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold a run folder. Raises MmrrError where another process holds it: two would overwrite each other's states."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MmrrError(f"another mmrr train is at work in {run}; wait for it, or use another --run folder") from error
    with lock:
        yield


class Steps(Dataset[Any]):
    """Step numbers to batches, so that a loader's workers can prepare them ahead."""

    def __init__(self, make: Callable[[int], Any], first: int, last: int) -> None:
        self.make, self.first, self.last = make, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Any:
        return self.make(self.first + index)


@dataclass(frozen=True, slots=True)
class _Share:
    """The batches of one process: it takes every n-th, so that all together see what one process would."""

    make: Callable[[int], Any]
    rank: int
    size: int

    def __call__(self, number: int) -> Any:
        return self.make(number * self.size + self.rank)


def batches(make: Callable[[int], Any], first: int, last: int, workers: int) -> Iterable[Any]:
    """``make(step)`` for each step, in order, computed ahead by ``workers`` processes."""
    loader: DataLoader[Any] = DataLoader(
        Steps(make, first, last),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_quiet_worker,
    )
    return loader


def train(
    run: RunFolder,
    model: nn.Module,
    schedule: Schedule,
    make_batch: Callable[[int], Any],
    losses: Callable[[Any], Losses],
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 500,
    workers: int = 1,
    device: torch.device | None = None,
    crew: Crew | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = torch.bfloat16,
    log_every: int = 10,
) -> Iterator[dict[str, Any]]:
    """Run the loop; yields a record every ``log_every`` steps, the same that go to the log.

    ``accumulate``: batches a step; batch n of step s is ``make_batch(s * accumulate + n)``, shared out among the
    processes of ``crew``. ``autocast`` None computes in the model's own number format. ``model`` is where ``crew``, or
    ``device``, computes. Only the first process logs and saves; all yield.
    """
    crew = crew or Crew(device or torch.device("cpu"))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98), fused=True)
    first = run.restore(model, optimizer)
    if crew.leads:
        run.rewind(first)
    if first >= schedule.steps:
        return
    crew.same(parameters)
    model.train()
    sums: dict[str, float] = {}
    began, count = time.monotonic(), 0
    make = make_batch if crew.size == 1 else _Share(make_batch, crew.rank, crew.size)
    loader = iter(batches(make, first * accumulate, schedule.steps * accumulate, workers))
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        names: list[str] = []
        reported: Tensor | float = 0.0
        for _ in range(accumulate):
            batch = _next(loader)
            if crew.device.type != "cpu":
                batch = placed(batch, crew.device)
            with mixed(crew.device, autocast):
                found = losses(batch)
            (next(iter(found.values())) / accumulate).backward()  # type: ignore[no-untyped-call]
            names = list(found)
            reported = reported + torch.stack([value.detach().float() for value in found.values()]) / accumulate
        assert isinstance(reported, Tensor)
        reported = crew.average(parameters, reported)
        if not torch.isfinite(reported[0]):
            raise MmrrError(f"the loss is {float(reported[0])} at step {step}; the last state saved is in {run.path}")
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in zip(names, reported.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + value
        count += 1
        done = step + 1
        # A record where a state is saved, so that a run that goes on from there starts a new one.
        saves = done % schedule.save_every == 0 or done == schedule.steps
        if done % log_every == 0 or saves:
            record: dict[str, Any] = {"step": done, **{name: round(value / count, 5) for name, value in sums.items()}}
            record |= {"lr": schedule.rate(step), "norm": round(float(norm), 4)}
            record |= {"s_per_step": round((time.monotonic() - began) / count, 4), "steps": schedule.steps}
            if evaluate and (done % evaluate_every == 0 or done == schedule.steps):
                model.eval()
                with torch.inference_mode(), mixed(crew.device, autocast):
                    record |= {name: round(value, 5) for name, value in evaluate().items()}
                model.train()
            if crew.leads:
                run.log(record)
            yield record
            sums, count, began = {}, 0, time.monotonic()
        if saves and crew.leads:
            run.save(done, model, optimizer)


def _next(loader: Iterator[Any]) -> Any:
    """The next batch. An error that a worker met comes with its traceback as message: the last line says it."""
    try:
        return next(loader)
    except MmrrError as error:
        message = str(error).strip().splitlines()[-1]
        raise MmrrError(message.removeprefix(f"{MmrrError.__module__}.{MmrrError.__name__}: ")) from error


def mixed(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to ``dtype``; None: none, whatever is on around it."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _step_of(line: str) -> float:
    """The step of a log's line; a line cut short by a kill is of no step that was kept."""
    try:
        return float(json.loads(line).get("step", 0))
    except (ValueError, AttributeError):
        return float("inf")


def _unshared(tensors: dict[str, Tensor]) -> list[str]:
    """Names of tensors with memory of their own: tied weights are written once, as safetensors asks."""
    first: dict[tuple[str, int], str] = {}
    for name, tensor in tensors.items():
        first.setdefault((str(tensor.device), tensor.data_ptr()), name)
    return list(first.values())


def _quiet_worker(_: int) -> None:
    torch.set_num_threads(1)
