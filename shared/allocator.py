"""Memory that large tensors leave stays with the process, instead of going back to the kernel at every step."""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next large tensor; return whether it agreed.

    By default glibc maps every tensor above 32 MiB anew and unmaps it after use, and the kernel then clears its pages
    each time; on a CPU that costs training a sixth of its speed. Other platforms are left as they are.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(*setting) for setting in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    )
