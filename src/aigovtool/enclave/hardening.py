"""
Keep the process's memory in the process: no core dumps, no reading by others, no swap.

What the kernel does not allow is said, not hidden: inside a TEE the hardware protects memory
anyway, and swap is the one way out that only the operating system can close.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>
_MCL_CURRENT = 1  # <sys/mman.h>
_MCL_FUTURE = 2
_MCL_ONFAULT = 4  # lock what is touched: without it every thread's whole stack becomes resident


def harden() -> list[str]:
    """
    Harden this process, and return one sentence for each thing that could not be had.

    Memory is locked only where no limit is set on it: under a limit, locking all future memory
    would make a large model fail to load instead of being swapped.
    """
    missing: list[str] = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        missing.append(f"other processes of this user can read our memory ({_why()})")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY:
        if _has_swap():
            missing.append(
                "memory is not locked and this machine has swap: raise RLIMIT_MEMLOCK to "
                "unlimited, or turn swap off"
            )
    elif libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        missing.append(f"memory cannot be locked against swapping ({_why()})")
    return missing


def silence_libraries() -> None:
    """
    Let only Python write to stdout and stderr from now on: what libraries print goes nowhere.

    Some print what they are given: llama.cpp's parser quotes a schema that it does not like. Call
    it before anything keeps `sys.stderr`.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        stream.flush()
        kept = open(  # noqa: SIM115 - for as long as the process lives
            os.dup(fd), "w", buffering=1, encoding=stream.encoding, errors=stream.errors
        )
        setattr(sys, name, kept)
        os.dup2(nowhere, fd)
    os.close(nowhere)


def _why() -> str:
    return os.strerror(ctypes.get_errno())


def _has_swap() -> bool:
    try:
        with open("/proc/swaps", encoding="ascii") as swaps:
            return len(swaps.readlines()) > 1
    except OSError:
        return True  # not known is not safe
