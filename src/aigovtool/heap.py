"""
What the C library does with memory that is freed; nothing where it is not glibc.

Bodies of megabytes come and go. By its own measure glibc gives such memory back to the kernel each
time, and the next body is faulted in anew, page by page: a tenth of the time of a 2.7 MB query.
"""

from __future__ import annotations

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 64 << 20  # at the end of the heap, until `return_freed_memory`
MAPPED_BYTES = 16 << 20  # what is as large is mapped alone, and unmapped when it is freed


def keep_freed_memory() -> None:
    """Keep freed memory for what comes next, up to `KEPT_BYTES`."""
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)


def return_freed_memory() -> None:
    """Give freed memory back to the kernel, which clears pages before anyone else gets them."""
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)


def _libc(name: str) -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), name, None)
