"""As many samples at once as the memory holds."""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batches:
    """Makes items in batches, halved whenever the memory runs out.

    Attributes
    ----------
    size : int
        Items at once; what was found to fit is kept for the next call.
    """

    size: int

    def run(self, make: Callable[[range], Tensor], count: int) -> Tensor:
        """Make `count` items.

        Parameters
        ----------
        make : callable
            Gives the items (item, ...) of a range of numbers; an item must not depend on which others are made with it,
            and a range that failed is asked for again, in parts.
        count : int

        Raises
        ------
        RuntimeError or MemoryError
            If not even one item fits.
        """
        parts: list[Tensor] = []
        first = 0
        while first < count:
            items = range(first, min(first + self.size, count))
            try:
                parts.append(make(items))
            except (RuntimeError, MemoryError) as error:
                if len(items) == 1 or not is_out_of_memory(error):
                    raise
                self.size = len(items) // 2
            else:
                first = items.stop
                continue
            gc.collect()  # outside the except block, whose traceback holds the tensors
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(parts)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that host or device memory is exhausted."""
    text = str(error).lower()
    signs = ("out of memory", "enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in text for sign in signs)
