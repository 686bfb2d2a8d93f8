"""A simulated second device for machines without one: its CPU tensors raise an error if mixed with other CPU tensors.

Code that runs on it never mixes devices, except where CUDA allows it: copies, tensors without dimensions, and indices.
The simulation says nothing about speed, memory or kernels of a real device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.conftest import CPU

aten = torch.ops.aten
ELSEWHERE = torch.device("lazy:0")
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put")


class Moved(Tensor):
    """A tensor on the simulated device. ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Moved:
        moved: Moved = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=ELSEWHERE
        )
        moved.here = here
        return moved

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that ``_Operators`` does not see: tensors made from Python numbers, also as indices."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            numbers = tree_map(lambda leaf: leaf.tolist() if isinstance(leaf, Moved) else leaf, args[0])
            return func(numbers, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(_index(part) if isinstance(part, list) else part for part in index), *args[2:])
        return func(*args, **kwargs)


def _index(numbers: list[Any]) -> Tensor:
    return torch.tensor(numbers, dtype=None if numbers else torch.long)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def elsewhere(*, learning: bool = False) -> Iterator[torch.device]:
    """Inside this block ``lazy`` is a working device. ``learning``: with gradients instead of inference mode."""
    with torch.inference_mode(not learning), _Functions(), _Operators():
        yield ELSEWHERE


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    moved = [tensor for tensor in tensors if isinstance(tensor, Moved)]
    left = [tensor for tensor in tensors if not isinstance(tensor, Moved) and tensor.dim() > 0]
    devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    if func is aten._has_compatible_shallow_copy_type.default:
        return not moved or not left
    if moved and left and func is not aten.copy_.default and func._schema.name not in _INDEXING:
        raise AssertionError(f"{func} meets {list(moved[0].shape)} elsewhere and {list(left[0].shape)} on the CPU")
    to_there = ELSEWHERE in devices

    def unwrap(leaf: Any) -> Any:
        if isinstance(leaf, Moved):
            return leaf.here
        return CPU if isinstance(leaf, torch.device) and leaf == ELSEWHERE else leaf

    found = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs))
    into_cpu = func is aten.copy_.default and not isinstance(args[0], Moved)
    if not to_there and (into_cpu or devices or not moved):
        return found
    same = {id(tensor.here): tensor for tensor in moved}  # in-place functions return their own argument

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return same[id(leaf)] if id(leaf) in same else Moved(leaf)

    return tree_map(wrap, found)
