"""
The platform itself: quotes for whoever asks, and the collateral that goes with them.

Everything that a test needs to go wrong is an argument of its own, so that each negative case is
signed as properly as the positive one.
"""

from __future__ import annotations

import hashlib
import os
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aigovtool.attestation.dcap import collateral as names
from aigovtool.attestation.dcap.claims import TD_ATTRIBUTE_DEBUG, TD_ATTRIBUTE_SEPT_VE_DISABLE
from aigovtool.attestation.dcap.quote import (
    CERTIFICATION_PCK_CHAIN,
    CERTIFICATION_QE_REPORT,
    ECDSA_P256,
    INTEL_QE_VENDOR_ID,
    TEE_TYPE_TDX,
)
from aigovtool.attestation.evidence import Endorsements, Tee
from aigovtool.attestation.simulated import ROOT_CA
from aigovtool.errors import MalformedError
from aigovtool.ids import sha256
from aigovtool.simulation.authority import (
    COMPONENTS,
    Authority,
    create_authority,
    load_authority,
    make_authority,
)
from aigovtool.simulation.documents import (
    QE_MRSIGNER,
    QE_PRODUCT,
    QE_SVN,
    TEE_TCB_SVN,
    chain_pem,
    make_crl,
    make_qe_identity,
    make_tcb_info,
    sign_p256,
)

DIRECTORY_VARIABLE = "AIGOVTOOL_SIMULATED_PLATFORM"
COLLATERAL_LIFE = timedelta(days=7)
CLOCK_SKEW = timedelta(hours=1)  # between the machine that signs and the one that verifies
XFAM = bytes.fromhex("e702060000000000")  # what real trust domains of today have
MR_SEAM = hashlib.sha384(b"aigovtool simulated TDX module").digest()
_QUOTE_VERSION = 4


def platform_directory() -> Path:
    """
    Return where this user's simulated platform lives.

    ``$AIGOVTOOL_SIMULATED_PLATFORM``, else ``aigovtool/simulated-platform`` under
    ``$XDG_DATA_HOME`` or ``~/.local/share``.
    """
    named = os.environ.get(DIRECTORY_VARIABLE)
    if named:
        return Path(named)
    data_home = os.environ.get("XDG_DATA_HOME")
    base = Path(data_home) if data_home else Path.home() / ".local" / "share"
    return base / "aigovtool" / "simulated-platform"


class SimulatedPlatform:
    """A machine that is a TDX host in everything but the silicon."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        # As a quoting enclave does, it makes its attestation key at start and certifies it.
        self._attestation_key = ec.generate_private_key(ec.SECP256R1())
        self._cached: tuple[datetime, Endorsements] | None = None

    @classmethod
    def create(cls, directory: Path, *, now: datetime) -> SimulatedPlatform:
        """Make a platform and write it down; raises as `create_authority` does."""
        return cls(create_authority(directory, now=now))

    @classmethod
    def load(cls, directory: Path) -> SimulatedPlatform:
        """Read a platform that `create` made; raises ConfigurationError when there is none."""
        return cls(load_authority(directory))

    @classmethod
    def in_memory(cls, *, now: datetime) -> SimulatedPlatform:
        """Make a platform that ends with the process, for tests."""
        return cls(make_authority(now=now))

    @property
    def root_der(self) -> bytes:
        """The root certificate."""
        return self._authority.root.certificate.public_bytes(Encoding.DER)

    @property
    def root_sha256(self) -> bytes:
        """The root's fingerprint, 32 bytes: what a policy has to name."""
        return sha256(self.root_der)

    def quote(
        self,
        mr_td: bytes,
        report_data: bytes,
        *,
        debug: bool = False,
        qe_mr_signer: bytes = QE_MRSIGNER,
    ) -> bytes:
        """
        Return a TDX quote of version 4.

        Args:
            mr_td: 48 bytes.
            report_data: 64 bytes.
            debug: say that the host can read the trust domain.
            qe_mr_signer: 32 bytes; another one is a quoting enclave that nobody stands for.

        Raises:
            MalformedError: a wrong length; nothing is padded or cut.
        """
        for what, value, size in (("MRTD", mr_td, 48), ("report data", report_data, 64)):
            if len(value) != size:
                raise MalformedError(
                    f"{what} of a wrong length",
                    expected=f"{size} bytes",
                    came=f"{len(value)} bytes",
                )
        signed = _header() + _td_report(mr_td, report_data, debug=debug)
        point = self._attestation_key.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        attestation_key, auth_data = point[1:], bytes(32)
        qe_report = _qe_report(qe_mr_signer, sha256(attestation_key + auth_data))
        pck_chain = chain_pem(self._authority.pck, self._authority.pck_ca, self._authority.root)
        certified = b"".join(
            (
                qe_report,
                sign_p256(self._authority.pck.key, qe_report),
                len(auth_data).to_bytes(2, "little"),
                auth_data,
                _certification(CERTIFICATION_PCK_CHAIN, pck_chain),
            )
        )
        section = b"".join(
            (
                sign_p256(self._attestation_key, signed),
                attestation_key,
                _certification(CERTIFICATION_QE_REPORT, certified),
            )
        )
        return signed + len(section).to_bytes(4, "little") + section

    def endorsements(self, now: datetime) -> Endorsements:
        """Return collateral that is valid around *now*; signed anew when half its life is over."""
        if self._cached is not None:
            issued, endorsements = self._cached
            if issued <= now < issued + COLLATERAL_LIFE / 2:
                return endorsements
        endorsements = self.make_endorsements(now)
        self._cached = (now, endorsements)
        return endorsements

    def make_endorsements(
        self,
        now: datetime,
        *,
        life: timedelta = COLLATERAL_LIFE,
        revoke_pck: bool = False,
        revoke_pck_ca: bool = False,
        newest_svn: int = COMPONENTS[0],
        qe_mr_signer: bytes = QE_MRSIGNER,
    ) -> Endorsements:
        """
        Sign collateral as of *now*.

        Args:
            life: until it expires.
            revoke_pck: put the platform's own certificate on the list.
            revoke_pck_ca: put the CA of that certificate on the root's list.
            newest_svn: more than the platform has (1) makes it out of date.
            qe_mr_signer: the quoting enclave that the QE identity stands for.
        """
        authority = self._authority
        issued, expires = now - CLOCK_SKEW, now + life
        tcb_info = make_tcb_info(issued=issued, expires=expires, newest_svn=newest_svn)
        qe_identity = make_qe_identity(issued=issued, expires=expires, mr_signer=qe_mr_signer)
        signing_chain = chain_pem(authority.tcb_signing, authority.root)
        by_root = [authority.pck_ca.certificate] if revoke_pck_ca else []
        by_ca = [authority.pck.certificate] if revoke_pck else []
        documents = {
            ROOT_CA: self.root_der,
            names.ROOT_CA_CRL: make_crl(
                authority.root, issued=issued, expires=expires, revoked=by_root
            ),
            names.PCK_CRL: make_crl(
                authority.pck_ca, issued=issued, expires=expires, revoked=by_ca
            ),
            names.PCK_CRL_ISSUER_CHAIN: chain_pem(authority.pck_ca, authority.root),
            names.TCB_INFO_ISSUER_CHAIN: signing_chain,
            names.TCB_INFO: tcb_info,
            names.TCB_INFO_SIGNATURE: sign_p256(authority.tcb_signing.key, tcb_info),
            names.QE_IDENTITY_ISSUER_CHAIN: signing_chain,
            names.QE_IDENTITY: qe_identity,
            names.QE_IDENTITY_SIGNATURE: sign_p256(authority.tcb_signing.key, qe_identity),
        }
        return Endorsements(tee=Tee.SIMULATED, documents=documents)


def _header() -> bytes:
    return b"".join(
        (
            _QUOTE_VERSION.to_bytes(2, "little"),
            ECDSA_P256.to_bytes(2, "little"),
            TEE_TYPE_TDX.to_bytes(4, "little"),
            bytes(4),
            INTEL_QE_VENDOR_ID,
            bytes(20),
        )
    )


def _td_report(mr_td: bytes, report_data: bytes, *, debug: bool) -> bytes:
    attributes = TD_ATTRIBUTE_SEPT_VE_DISABLE | (TD_ATTRIBUTE_DEBUG if debug else 0)
    return b"".join(
        (
            TEE_TCB_SVN,
            MR_SEAM,
            bytes(48),  # MRSIGNERSEAM: zeros, as of Intel's own modules
            bytes(8),  # SEAMATTRIBUTES
            attributes.to_bytes(8, "little"),
            XFAM,
            mr_td,
            bytes(3 * 48),  # MRCONFIGID, MROWNER, MROWNERCONFIG
            bytes(4 * 48),  # RTMR0 to RTMR3: nothing is extended at run time
            report_data,
        )
    )


def _qe_report(mr_signer: bytes, commitment: bytes) -> bytes:
    return b"".join(
        (
            bytes(COMPONENTS),
            bytes(4 + 28),  # MISCSELECT, reserved
            (0x15).to_bytes(8, "little"),  # INIT, MODE64BIT, PROVISION_KEY
            (0xE7).to_bytes(8, "little"),
            sha256(b"aigovtool simulated quoting enclave code"),
            bytes(32),
            mr_signer,
            bytes(96),
            QE_PRODUCT.to_bytes(2, "little"),
            QE_SVN.to_bytes(2, "little"),
            bytes(60),
            commitment,
            bytes(32),
        )
    )


def _certification(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(body).to_bytes(4, "little") + body
