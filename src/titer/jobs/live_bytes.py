"""Counts the bytes of tensors that are alive, with numbers in them or without."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from titer.compat import operations_watcher, tensors_in


class LiveBytes(operations_watcher()):  # type: ignore[misc]
    """Counts the bytes of tensors that are alive, and the most that ever were, as operations make them inside of the block.

    Tensors that share memory count once. What a kernel needs while it runs, and no operation returns, is not seen.

    Attributes:
        kernels: Operations that made or changed something; views are none.
        now: Bytes alive.
        most: The most since the count began, or since somebody set it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.kernels = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = func(*args, **(kwargs or {}))
        tensors = tensors_in(made)
        self.kernels += bool(tensors) and not func.is_view
        self.count(tensors)
        return made

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            memory = tensor.untyped_storage()
            if memory not in self._seen:
                size = memory.nbytes()
                self._seen[memory] = size
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(memory, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size
