"""
What verified evidence says, whatever the vendor.

Each kind of TEE has a claims class of its own with the vendor's fields; `Claims` is what they
share.
"""

from __future__ import annotations

from typing import Protocol


class Claims(Protocol):
    """Facts under a vendor's signatures, for one time. Frozen; made by `verify` alone."""

    @property
    def report_data(self) -> bytes:
        """What the attester bound into its evidence; compared with `binding.report_data`."""
        ...

    @property
    def measurement(self) -> str:
        """The vendor's measurement of what was started, in hex."""
        ...

    @property
    def platform_id(self) -> str:
        """What names the machine, as far as the vendor tells it apart from others."""
        ...
