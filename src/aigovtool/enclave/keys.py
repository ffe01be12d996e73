"""
The keys that an enclave makes for itself, in memory, and that its evidence commits to.

Rule 1: TLS and signing keys live as long as the process. The HPKE key lives for one session and is
        let go with it, so that a release recorded by somebody cannot be opened after a stop.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation.binding import EnclaveKeys
from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import TlsIdentity, make_enclave_identity
from aigovtool.wire.enrolment import Keys


@dataclass(frozen=True, slots=True)
class ProcessKeys:
    """The keys of the process."""

    tls: TlsIdentity
    signing: SigningKey

    @classmethod
    def make(cls, *, now: datetime) -> ProcessKeys:
        """Make both."""
        return cls(tls=make_enclave_identity(now=now), signing=SigningKey.generate())

    def public(self, hpke: HpkeKey) -> EnclaveKeys:
        """Return the public keys of a session with this HPKE key."""
        return EnclaveKeys(
            tls_spki_sha256=self.tls.spki_sha256,
            signing_key=self.signing.public_key,
            hpke_key=hpke.public_key,
        )


def on_the_wire(keys: EnclaveKeys) -> Keys:
    """Write public keys as a message carries them."""
    return Keys(
        tls_spki_sha256=keys.tls_spki_sha256, signing_key=keys.signing_key, hpke_key=keys.hpke_key
    )
