"""
The keys that an enclave makes for itself, in memory, and that its evidence commits to.

Rule 1: TLS and signing keys live as long as the process. The HPKE key lives for one session and is
        let go with it, so that a release recorded by somebody cannot be opened after a stop.
Rule 2: the TLS certificate holds evidence over its own key, for RA-TLS tools. It knows no nonce, so
        nothing of ours relies on it (`channel.ratls`), and a certificate without it does as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from aigovtool.attestation.binding import EnclaveKeys
from aigovtool.channel.ratls import certificate_extensions
from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import TlsIdentity, make_enclave_identity
from aigovtool.enclave.attester.base import Attester
from aigovtool.errors import AIGovToolError
from aigovtool.wire.enrolment import Keys

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessKeys:
    """The keys of the process."""

    tls: TlsIdentity
    signing: SigningKey

    @classmethod
    def make(
        cls,
        *,
        now: datetime,
        extensions: Callable[[bytes], Iterable[x509.ExtensionType]] | None = None,
    ) -> ProcessKeys:
        """Make both; *extensions* as `make_enclave_identity` takes them."""
        return cls(
            tls=make_enclave_identity(now=now, extensions=extensions),
            signing=SigningKey.generate(),
        )

    def public(self, hpke: HpkeKey) -> EnclaveKeys:
        """Return the public keys of a session with this HPKE key."""
        return EnclaveKeys(
            tls_spki_sha256=self.tls.spki_sha256,
            signing_key=self.signing.public_key,
            hpke_key=hpke.public_key,
        )


async def make_keys(attester: Attester, *, now: datetime, wait_s: float) -> ProcessKeys:
    """Make the keys of the process, with evidence in the certificate if it is there in *wait_s*."""
    extensions = certificate_extensions(attester.evidence)
    try:
        async with asyncio.timeout(wait_s):
            return await asyncio.to_thread(ProcessKeys.make, now=now, extensions=extensions)
    except AIGovToolError as error:
        _log.warning("no evidence in the TLS certificate, for RA-TLS tools: %s", error)
    except TimeoutError:
        _log.warning("no evidence in the TLS certificate, for RA-TLS tools: none in %g s", wait_s)
    return ProcessKeys.make(now=now)


def on_the_wire(keys: EnclaveKeys) -> Keys:
    """Write public keys as a message carries them."""
    return Keys(
        tls_spki_sha256=keys.tls_spki_sha256, signing_key=keys.signing_key, hpke_key=keys.hpke_key
    )
