"""Turning what users hand in (NumPy arrays, lists, tensors) into the tensors that operators work on."""

from typing import Any

import torch
from torch import Tensor


def as_complex(x: Any) -> Tensor:
    """Return `x` as a complex tensor: complex128 stays, everything else becomes complex64."""
    x = torch.as_tensor(x)
    return x if x.dtype == torch.complex128 else x.to(torch.complex64)


def as_mask(x: Any) -> Tensor:
    """Return `x` as a bool tensor, True where it is not zero."""
    x = torch.as_tensor(x)
    return x if x.dtype == torch.bool else x != 0
