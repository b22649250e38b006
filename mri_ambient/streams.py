"""Independent random streams that are addressed by name instead of by order of use.

Every random quantity of a run (the noise of slice 7, the mask of a file, sample 3 of a posterior) gets its own
generator, whose state depends on ``(seed, keys)`` and on nothing else. Results then do not change with the batch size,
the number of devices, or the subset of slices that is processed.

The state is a hash of the address: neighbouring seeds or slice numbers give unrelated streams, which arithmetic such as
``seed + slice`` does not (seed 0, slice 1 would equal seed 1, slice 0).
"""

from __future__ import annotations

import hashlib
import json

import torch


def stream(seed: int, *keys: int | str) -> torch.Generator:
    """Random generator (CPU) of the address ``(seed, *keys)``.

    Parameters
    ----------
    seed : int
        Seed of the run.
    *keys : int or str
        What the stream is for, for example ``stream(seed, "noise", file_name, slice_index)``. The number 1 and the
        string "1" are different keys.

    Returns
    -------
    torch.Generator
        A new CPU generator; equal addresses give equal streams.

    Raises
    ------
    TypeError
        If a key is neither an integer nor a string.

    Notes
    -----
    PyTorch's CPU generator is initialised from 32 bits, so two given addresses share a stream with probability 2^-32.

    Examples
    --------
    >>> first, again = stream(0, "noise", 3), stream(0, "noise", 3)
    >>> bool(torch.rand((), generator=first) == torch.rand((), generator=again))
    True
    """
    address = json.dumps([_plain(key) for key in (seed, *keys)])
    digest = hashlib.sha256(address.encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:4], "little"))
    return generator


def _plain(key: int | str) -> int | str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool) or not hasattr(key, "__index__"):
        raise TypeError(f"a stream key is an integer or a string, not {type(key).__name__}")
    return int(key)
