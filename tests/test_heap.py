"""What freed memory costs the next body."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

BODIES_BYTES = 24 << 20
FAULTS = """
import resource
from aigovtool.heap import keep_freed_memory, return_freed_memory

def faults(begin=0):
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

keep_freed_memory()
bodies = [bytearray(3 << 20) for _ in range(8)]  # by its own measure glibc would map each alone
del bodies
begin = faults()
bodies = [bytearray(3 << 20) for _ in range(8)]
again = faults(begin)
del bodies
return_freed_memory()
begin = faults()
bodies = [bytearray(3 << 20) for _ in range(8)]
print(again, faults(begin))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt and malloc_trim are glibc's")
def test_freed_memory_is_kept_for_the_next_body_until_it_is_given_back() -> None:
    run = [sys.executable, "-c", FAULTS]
    said = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    again, after = map(int, said.split())
    pages = BODIES_BYTES // 4096
    assert again < pages // 2
    assert after > pages // 2
