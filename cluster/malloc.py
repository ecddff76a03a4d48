"""Settings of glibc's allocator that keep freed memory in the process.

On some machines page faults cost more than the arithmetic.
"""

import ctypes
import ctypes.util
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # malloc.h of glibc


def keep_freed_memory(reserve: int = 256 << 20) -> bool:
    """Tell glibc to reuse freed blocks instead of handing them back to the kernel.

    PyTorch frees and allocates every activation at every step; on a small virtual machine with slow
    page faults the training of a tiny model became 3 to 7 times faster with this. ``reserve`` bytes
    are taken from the kernel at a time. The process may then hold up to twice what it uses:
    ``ISTHMUS_KEEP_MEMORY=0`` leaves glibc as it is, for a machine that is short of memory. Returns
    whether it took effect (False without glibc).
    """
    if os.environ.get("ISTHMUS_KEEP_MEMORY") == "0":
        return False
    name = ctypes.util.find_library("c")
    libc = ctypes.CDLL(name) if name else None
    if libc is None or not hasattr(libc, "mallopt"):
        return False
    return all(
        (
            libc.mallopt(_MMAP_MAX, 0),
            libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1),
            libc.mallopt(_TOP_PAD, reserve),
        )
    )


def keep_memory() -> None:
    """Have the C library keep what this process frees, for a process that decodes all day.

    Decoding an image takes and frees megabytes. By default the library gives them back each time,
    and taking them again is a page fault every 4 kB: on a virtual machine up to half a millisecond
    an image of 640 x 480. At most 128 MB are kept; without glibc nothing changes.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc takes
        library.mallopt(_TRIM_THRESHOLD, 128 << 20)
