"""Keep freed memory in the process, so that the CPU does not spend its time on page faults.

Networks and FFTs on the CPU allocate and free arrays of tens of megabytes at every layer. By default glibc takes such
blocks from the kernel and gives them back each time, and the kernel must zero every page again. A U-Net's training
step at 8 x 64 x 160 took 1.2 times longer that way on a quiet machine of two cores (`benchmarks/allocator.py`), and
much longer on a busy one.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from the heap and to keep what is freed; for the whole process.

    Returns
    -------
    bool
        Whether the settings were taken; False on systems without glibc, where nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20}
    taken = [mallopt(option, value) == 1 for option, value in settings.items()]
    return all(taken)
