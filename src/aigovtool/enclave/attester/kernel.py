"""
The few ways in which an attester touches the kernel, as one collaborator.

Everything that can go wrong at such a door is told apart here, once: missing, forbidden, busy,
broken. Tests put a stand-in behind the same four calls.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aigovtool.errors import ConfigurationError, UnavailableError

MAX_READ_BYTES = 1 << 20  # no report, quote or certificate table comes near it
_BUSY = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT})


class Kernel:
    """The machine's own files and devices."""

    def exists(self, path: Path) -> bool:
        """Whether *path* is there; one that may not be looked at counts as there."""
        try:
            return path.exists()
        except OSError:
            return True

    def mkdir(self, path: Path) -> None:
        with door(path):
            path.mkdir(mode=0o700)

    def rmdir(self, path: Path) -> None:
        with door(path):
            path.rmdir()

    def write(self, path: Path, data: bytes) -> None:
        """Write *data* in one call, as such files want it; a short write is an error."""
        with door(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        if written != len(data):
            raise UnavailableError(
                f"{path} took {written} of {len(data)} bytes", code="attester.short_write"
            )

    def read(self, path: Path) -> bytes:
        """Read *path* to its end, which may take several calls."""
        with door(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                parts = bytearray()
                while part := os.read(descriptor, 64 << 10):
                    parts += part
                    if len(parts) > MAX_READ_BYTES:
                        raise UnavailableError(f"{path} does not end", code="attester.too_long")
            finally:
                os.close(descriptor)
        return bytes(parts)

    def ioctl(self, path: Path, request: int, argument: bytearray) -> None:
        """Call one ioctl on the device *path*; *argument* is changed in place."""
        with door(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, request, argument, True)
            finally:
                os.close(descriptor)


@contextmanager
def door(path: Path) -> Iterator[None]:
    """
    Turn an operating system error at *path* into what the caller can do about it.

    Raises:
        ConfigurationError: *path* is missing or may not be used.
        UnavailableError: it is busy, or the device failed; worth another try.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} is not there",
            code="attester.missing",
            mend="load the kernel's driver, or mount configfs, inside the TEE",
        ) from None
    except PermissionError:
        raise ConfigurationError(
            f"{path} may not be used by this user",
            code="attester.permission",
            came=f"user {os.geteuid()}",
            mend=f"run the enclave as a user who may read and write {path}",
        ) from None
    except OSError as error:
        busy = error.errno in _BUSY
        raise UnavailableError(
            f"{path}: {os.strerror(error.errno or errno.EIO)}",
            code="attester.busy" if busy else "attester.device",
            mend=None if busy else "look at the kernel's log",
            retry_after_s=1.0,
        ) from None
