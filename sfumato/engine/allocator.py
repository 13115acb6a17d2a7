"""Keeping freed memory in the process, for commands and servers.

glibc gives every block above a moving threshold (at most 32 MB) back to the system as soon as it is freed, and asks for
it anew a moment later: a network's activations are such blocks, and each step then pays a page fault for every 4 KB of
them. ``keep_freed_memory`` is called where the command line and the server start. A program that uses sfumato as a
library decides for itself: it may call it too, or run under tcmalloc or jemalloc, where it changes nothing.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of <malloc.h>


def keep_freed_memory() -> bool:
    """From now on, freed blocks of any size are used again rather than returned to the system.

    The process's memory then stays at its highest mark. Call it early: blocks that exist already are not affected.

    Returns:
        Whether the C library has these settings (glibc); elsewhere nothing happens.
    """
    if not _is_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block comes from mmap; the heap's end is never handed back, and grows by 64 MB at a time.
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20}
    return all(mallopt(key, value) == 1 for key, value in settings.items())


def return_freed_memory() -> None:
    """Give what is free at this moment back to the system: after loading, when much was freed for good.

    What ``keep_freed_memory`` does from then on stays the same.
    """
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # another system, another C library
        return False
