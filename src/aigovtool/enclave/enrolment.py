"""
Enrolment, from the enclave's side: prove what this is, receive the content key.

Rule 1: the evidence commits to the custodian's nonce, our keys, the custodian and the loan.
Rule 2: what comes back must be about exactly these: the statement names our keys and the manifest
        that came, and the manifest is signed by the ticket's custodian.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aigovtool import __version__
from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.crypto.hpke import HpkeKey
from aigovtool.crypto.labels import Label
from aigovtool.enclave.attester.base import Attester
from aigovtool.enclave.custodian_client import CustodianClient
from aigovtool.enclave.keys import ProcessKeys, on_the_wire
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.errors import VerificationError
from aigovtool.ids import LoanId, SessionId
from aigovtool.sealing.manifest import VerifiedManifest, verify_manifest
from aigovtool.wire.codec import Signed, decode, open_signed
from aigovtool.wire.enrolment import Documents, EnrolRequest, Secrets, SessionStatement, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """
    What an accepted enrolment gave.

    Args:
        content_key: 32 bytes; whoever used it overwrites it with `secret_bytes.overwrite`.
        keys: the public keys that the evidence and the statement name.
    """

    session: SessionId
    content_key: bytes
    verified: VerifiedManifest
    statement: Signed
    terms: Terms
    keys: EnclaveKeys

    def __repr__(self) -> str:
        return f"Enrolment(session={self.session!r})"


async def enrol(
    client: CustodianClient,
    *,
    attester: Attester,
    keys: ProcessKeys,
    loan: LoanId,
    newest: Signed | None = None,
) -> Enrolment:
    """
    Enrol once. The session's HPKE key lives only in here: what was sealed to it is opened once.

    Args:
        newest: the newest statement of the custodian's that is known here, to be shown to it.

    Raises:
        AIGovToolError: as `CustodianClient.enrol`, or an attester that cannot make evidence.
        VerificationError: the release is not for us, or contradicts itself.
    """
    custodian_key = client.custodian.key
    challenge = await client.challenge()
    hpke = HpkeKey()
    public = keys.public(hpke)
    bound = report_data(
        AskedBy.CUSTODIAN,
        nonce=challenge.nonce,
        keys=public,
        custodian_key=custodian_key,
        loan_id=loan,
    )
    evidence, endorsements = await asyncio.to_thread(attest, attester, bound)
    release = await client.enrol(
        EnrolRequest(
            loan=loan,
            nonce=challenge.nonce,
            keys=on_the_wire(public),
            evidence=documents(evidence),
            endorsements=documents(endorsements),
            software=f"aigovtool/{__version__}",
            statement=newest,
        )
    )
    verified = verify_manifest(release.manifest, custodian_key)
    statement = open_signed(
        release.statement,
        SessionStatement,
        public_key=custodian_key,
        label=Label.SESSION_STATEMENT,
    )
    if (statement.loan, statement.session, statement.keys, statement.model_digest) != (
        loan,
        release.session,
        on_the_wire(public),
        verified.digest,
    ):
        raise VerificationError(
            "the custodian's release is not for this enclave and its model",
            code="enrolment.statement",
            mend="tell the custodian: its server contradicts itself",
        )
    secrets = hpke.open(release.sealed_secrets, Label.CONTENT_KEY_RELEASE, bound)
    try:
        content_key = decode(secrets, Secrets).content_key
    finally:
        overwrite(secrets)
    return Enrolment(
        session=release.session,
        content_key=content_key,
        verified=verified,
        statement=release.statement,
        terms=release.terms,
        keys=public,
    )


def documents(some: Evidence | Endorsements) -> Documents:
    """Write evidence or endorsements as a message carries them."""
    return Documents(tee=some.tee.value, documents=dict(some.documents))


def attest(attester: Attester, bound: bytes) -> tuple[Evidence, Endorsements]:
    """Make evidence that commits to *bound*; blocks, and raises as the attester does."""
    return attester.evidence(bound), attester.endorsements()
