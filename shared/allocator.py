"""What glibc does with freed memory: kept for the next large tensor, or overwritten where images are decoded.

Other platforms are left as they are.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_PERTURB = -1, -2, -4, -6


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next large tensor; return whether it agreed.

    By default glibc maps every tensor above 32 MiB anew and unmaps it after use, and the kernel then clears its pages
    each time; on a CPU that costs training a sixth of its speed.
    """
    return _agreed((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))


def overwrite_freed_memory() -> bool:
    """Ask glibc to overwrite what is freed, so that no decoder finds one image in the memory of another.

    A second line behind decoders that return only what they wrote. Blocks of a kilobyte and less, which glibc hands on
    by a shorter way, and what libraries keep for themselves it does not reach. Returns whether glibc agreed.
    """
    return _agreed((_M_PERTURB, 0x5A))


def _agreed(*settings: tuple[int, int]) -> bool:
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in settings)
