"""What attesters have in common that ask the kernel at one path: check, try, try again."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.enclave.attester.base import check_report_data
from aigovtool.enclave.attester.kernel import Kernel
from aigovtool.enclave.attester.retry import retry


class KernelAttester(ABC):
    """
    Evidence from one device or folder of the kernel's.

    Args:
        kernel, path, sleep: collaborators; tests put stand-ins here.
    """

    tee: Tee
    default_path: ClassVar[Path]

    def __init__(
        self,
        *,
        kernel: Kernel | None = None,
        path: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._kernel = kernel or Kernel()
        self._path = path or self.default_path
        self._sleep = sleep

    def evidence(self, report_data: bytes) -> Evidence:
        """
        Return fresh evidence over *report_data* (64 bytes).

        Raises:
            ConfigurationError: the path is not there, may not be used, or serves another TEE.
            UnavailableError: busy, broken or cut short, after all attempts.
        """
        check_report_data(report_data)
        return retry(lambda: self._ask(report_data), sleep=self._sleep)

    def endorsements(self) -> Endorsements:
        """Return what the host handed over by itself: nothing beside the evidence."""
        return Endorsements(tee=self.tee)

    @abstractmethod
    def _ask(self, report_data: bytes) -> Evidence:
        """Ask once; an UnavailableError is worth another try."""
