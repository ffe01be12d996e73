"""What a genuine SEV-SNP report claims, in the form in which policies and people read it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from aigovtool.attestation.snp.layout import (
    FirmwareVersion,
    GuestPolicy,
    PlatformInfo,
    SigningKey,
)
from aigovtool.attestation.snp.product import Product, Tcb


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """
    Claims that hold at `verified_at`; made only by `verify`.

    Args:
        report_data: 64 bytes chosen by the guest.
        measurement: 96 hex digits, the launch digest.
        host_data: 64 hex digits, chosen by the host.
        id_key_digest: 96 hex digits, zeros when the guest was launched without an ID block.
        author_key_digest: 96 hex digits, zeros without an author key.
        family_id: 32 hex digits of the ID block.
        image_id: 32 hex digits of the ID block.
        chip_id: 128 hex digits; None when the host masks it, which it may only do with a VLEK.
        csp_id: the cloud that holds the VLEK; None for a VCEK.
        launch_mitigations: bit vector; None when the firmware does not report it.
        current_mitigations: likewise.
        revocation: ``checked`` when a current CRL of AMD's root was given and revokes nothing
            of the chain; ``unknown`` when none was given.
    """

    product: Product
    report_version: int
    report_data: bytes
    measurement: str
    host_data: str
    id_key_digest: str
    author_key_digest: str
    family_id: str
    image_id: str
    guest_svn: int
    guest_policy: GuestPolicy
    platform_info: PlatformInfo
    vmpl: int
    current_tcb: Tcb
    reported_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_mitigations: int | None
    current_mitigations: int | None
    signing_key: SigningKey
    chip_id: str | None
    csp_id: str | None
    revocation: Literal["checked", "unknown"]
    verified_at: datetime

    @property
    def debug(self) -> bool:
        """Whether the host may read and write the guest's memory."""
        return self.guest_policy.debug

    @property
    def platform_id(self) -> str | None:
        """The chip, in hex; None when it is not known which of a cloud's chips it is."""
        return self.chip_id
