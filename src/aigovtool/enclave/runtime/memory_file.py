"""
Memory that other code opens like a file, for libraries that load nothing else; on no disk.

Rule 1: it has no name in any file system. `path` leads to it in this process only.
Rule 2: once it is sealed nobody maps it for writing, writes to it or changes its size; what was
        mapped before, `view`, still can, so that what is in it can be overwritten.
Rule 3: its pages exist from the start: a machine without memory is an error here, not a signal
        when they are first touched. More than the machine has free is not even tried: the kernel
        would kill processes, ours or others, before it says no.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import weakref
from pathlib import Path

from aigovtool.errors import UnavailableError

# <linux/fcntl.h>; Python has no name for the one that lets a mapping from before go on writing
_F_SEAL_FUTURE_WRITE = 0x10
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


class MemoryFile:
    """
    Memory of *size* bytes, all zero.

    Args:
        view: the bytes, writable.
        path: opens it, in this process.

    Raises:
        UnavailableError: the machine has no such memory.
    """

    def __init__(self, size: int) -> None:
        self._fd = os.memfd_create("aigovtool-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._close = weakref.finalize(self, os.close, self._fd)
        try:
            if size > _available_bytes():
                raise OSError(errno.ENOMEM, "more than is free")
            os.posix_fallocate(self._fd, 0, size)
            self._mapping = mmap.mmap(self._fd, size)
        except (OSError, OverflowError):
            self._close()
            raise UnavailableError(
                f"no memory for {size} bytes of a model",
                code="sealing.memory",
                mend="give the enclave more memory, or lend a smaller model",
            ) from None
        self._mapping.madvise(mmap.MADV_DONTDUMP)
        self.view = memoryview(self._mapping)
        self.path = f"/proc/self/fd/{self._fd}"

    def seal(self) -> None:
        """
        Let nobody write from now on but by `view` (Rule 2).

        The pages are forgotten by that mapping until it is used again: a process counts those that
        it maps twice as two.
        """
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        with contextlib.suppress(OSError):  # refused for locked memory, which then counts twice
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def holds(self, piece: bytes, *, within: int) -> bool:
        """Whether *piece* is in the first *within* bytes."""
        return self._mapping.find(piece, 0, within) >= 0

    def close(self) -> None:
        """Let go; what still maps it keeps it."""
        self.view.release()
        with contextlib.suppress(BufferError):  # somebody still looks at it, and lets go later
            self._mapping.close()
        self._close()


def _available_bytes() -> int:
    """Return what the kernel says can be taken without taking it from anyone (proc(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    raise OSError(errno.ENOSYS, "the kernel does not say how much memory is free")
