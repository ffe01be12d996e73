"""
Memory for plaintext: where a model is put, and how it is made to disappear.

Rule 1: plaintext lives in anonymous private memory, which no file backs and no core dump holds.
Rule 2: what is no longer needed, or was never proven genuine, is overwritten before it is let go.
"""

from __future__ import annotations

import contextlib
import mmap

from aigovtool.errors import UnavailableError

WritableBuffer = bytearray | memoryview | mmap.mmap

WIPE_BLOCK_BYTES = 1 << 20
_ZEROS = bytes(WIPE_BLOCK_BYTES)


def anonymous_memory(size: int) -> memoryview:
    """
    Return *size* zeroed, writable bytes that belong to no file.

    Huge pages are asked for because the first touch of 4 KiB pages costs more than the decryption
    (measured: 1.4 GB/s against 3.6). The mapping is given back when the last view of it is gone.

    Raises:
        UnavailableError: the machine has no such memory.
    """
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise UnavailableError(
            f"no memory for {size} bytes of a model",
            code="sealing.memory",
            mend="give the enclave more memory, or lend a smaller model",
        ) from None
    mapping.madvise(mmap.MADV_DONTDUMP)
    with contextlib.suppress(OSError):  # a kernel without huge pages is slower, not less safe
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)


def wipe(buffer: WritableBuffer) -> None:
    """Overwrite every byte of a writable *buffer* with zero; takes no memory of its own."""
    with memoryview(buffer) as whole, whole.cast("B") as view:
        for start in range(0, len(view), WIPE_BLOCK_BYTES):
            part = view[start : start + WIPE_BLOCK_BYTES]
            part[:] = _ZEROS[: len(part)]
