"""
What verified evidence says, whatever the vendor.

Each kind of TEE has a claims class of its own with the vendor's fields; `Claims` is what they
share.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Claims(Protocol):
    """Facts under a vendor's signatures, for one time. Frozen; made by `verify` alone."""

    @property
    def report_data(self) -> bytes:
        """What the attester bound into its evidence."""
        ...

    @property
    def measurement(self) -> str:
        """The vendor's measurement of what was started, in hex."""
        ...

    @property
    def platform_id(self) -> str | None:
        """What names the machine; None when the vendor or the cloud hides it."""
        ...


@runtime_checkable
class CommitsByDigest(Protocol):
    """Claims of a TEE that has no room for 64 bytes, or other bytes beside them."""

    def commitment_to(self, report_data: bytes) -> bytes:
        """Return what `Claims.report_data` must be to commit to these 64 bytes."""
        ...
