"""What a genuine Nitro attestation document claims, as policies and people read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NitroClaims:
    """
    Claims that hold at `verified_at`; made only by `verify`.

    Args:
        module_id: parent instance and enclave, such as ``i-0123456789abcdef0-enc0123456789abcdef``.
        timestamp: aware, by the hypervisor's clock, when the document was made.
        pcrs: 96 hex digits by index; 0 to 15 always.
        user_data: up to 512 bytes of the enclave's choice; this product puts the report data of
            `attestation.binding` here, and nothing in the other two.
        nonce: up to 512 bytes of the enclave's choice.
        public_key: up to 1024 bytes of the enclave's choice.
    """

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, str]
    user_data: bytes | None
    nonce: bytes | None
    public_key: bytes | None
    verified_at: datetime

    @property
    def report_data(self) -> bytes:
        """
        Return the bytes that bind the document to keys and nonce: `user_data`, or nothing.

        Whoever compares them compares lengths too: they are never padded or cut.
        """
        return self.user_data or b""

    @property
    def measurement(self) -> str:
        """PCR0 in hex: the whole enclave image (kernel, command line, ramdisks)."""
        return self.pcrs[0]

    @property
    def debug(self) -> bool:
        """
        Whether the enclave's console can be read from the parent instance.

        There is no flag for it: a debug enclave reports zeros in place of its measurements. One of
        PCR0 to PCR2 being zero suffices, as no image hashes to zero.
        """
        return any(not int(self.pcrs[index], 16) for index in (0, 1, 2))

    @property
    def parent_instance(self) -> str:
        """The EC2 instance on which the enclave runs, such as ``i-0123456789abcdef0``."""
        return self.module_id.partition("-enc")[0]

    @property
    def platform_id(self) -> str:
        """The parent instance: AWS names no machine, and the enclave's own name is new each run."""
        return self.parent_instance
