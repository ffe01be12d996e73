"""
Judge an enclave before anything is sent to it: bytes in, verdict out.

1. The document answers the nonce of this very question, so it is not an old one played again.
2. Its TLS key is the key of the connection that it came over, so it is not relayed from elsewhere.
3. It names the custodian and the loan that the consumer's own ``manifest.toml`` names.
4. Its evidence is genuine, commits to nonce, keys, custodian and loan, and is acceptable.
5. The custodian says, signed and not expired, that exactly these keys hold this loan.
6. The model is the one that the custodian signed, and the one that its statement names.

Everything from 4 on is checked against the consumer's custodian and loan, never against what the
document says of them. What fails is listed in full; 4 to 6 are looked at only after 1 to 3 hold,
for otherwise they fail as a consequence and would only bury the cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.policy import Policy
from aigovtool.attestation.verify import judge
from aigovtool.channel.fetch import Presented
from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import fingerprint
from aigovtool.crypto.tls import CLOCK_SKEW
from aigovtool.errors import (
    AIGovToolError,
    MalformedError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.ids import DIGEST_BYTES, LoanId
from aigovtool.sealing.manifest import VerifiedManifest, verify_manifest
from aigovtool.wire.codec import decode, open_signed
from aigovtool.wire.enrolment import AttestationDocument, Documents, SessionStatement

MAX_SHOWN_CHARACTERS = 100  # of what a peer calls itself

# Whose fault the first reason tells decides the class of a refusal: an attack before a rule, a rule
# before a bad moment.
_GRAVEST_FIRST = (VerificationError, MalformedError, RefusedError, UnavailableError)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEnclave:
    """
    An enclave that may have the consumer's input, and all that is known of it.

    Args:
        keys: its attested keys; receipts are signed by ``keys.signing_key``.
        custodian_key: 32 bytes, as in the consumer's own ``manifest.toml``.
        loan: which loan it holds.
        statement: the custodian's word on this session, as of ``statement.issued``.
        model: the model's manifest, signed by the custodian.
        attestation: what the evidence says, and by which rules it was accepted.
        judged: when, aware UTC.
        document: the `AttestationDocument` that was judged, as it came, to be kept.
    """

    keys: EnclaveKeys
    custodian_key: bytes
    loan: LoanId
    statement: SessionStatement
    model: VerifiedManifest
    attestation: AttestationResult
    judged: datetime
    document: bytes = field(repr=False)

    @property
    def simulated(self) -> bool:
        """Whether its TEE is the simulated one, which protects nothing from the machine's owner."""
        return self.attestation.simulated


def judge_enclave(
    presented: Presented, *, nonce: bytes, policy: Policy, now: datetime
) -> VerifiedEnclave:
    """
    Judge what a peer *presented* in answer to *nonce* (32 bytes) at *now* (aware UTC).

    Raises:
        ConfigurationError: *policy* names no custodian and loan.
        MalformedError: the document cannot be read.
        VerificationError: something in it is not genuine, replayed or relayed.
        AppraisalError: genuine, and the policy does not accept it.
        UnavailableError: all else holds, but the custodian's word on this session has run out.

    The error carries every reason that was found.
    """
    custodian = policy.require_custodian()
    custodian_key, loan = custodian.public_key, custodian.loan
    document = decode(presented.document, AttestationDocument)
    keys = EnclaveKeys(
        tls_spki_sha256=document.keys.tls_spki_sha256,
        signing_key=document.keys.signing_key,
        hpke_key=document.keys.hpke_key,
    )

    findings = _Findings()
    with findings.noted():  # 1
        _check_nonce(document, nonce)
    with findings.noted():  # 2
        _check_tls_key(keys, presented)
    with findings.noted():  # 3
        _check_names(document, custodian_key, loan)
    findings.raise_any()

    with findings.noted():  # 4
        attestation = judge(
            Evidence(tee=_tee(document.evidence), documents=document.evidence.documents),
            Endorsements(
                tee=_tee(document.endorsements), documents=document.endorsements.documents
            ),
            policy,
            expected_report_data=report_data(
                AskedBy.CONSUMER, nonce=nonce, keys=keys, custodian_key=custodian_key, loan_id=loan
            ),
            now=now,
        )
    with findings.noted():  # 5
        statement = _open_statement(document, custodian_key, loan, now)
    with findings.noted():  # 6
        model = verify_manifest(document.manifest, custodian_key)
    findings.raise_any()
    _check_model(model, statement)  # 6
    return VerifiedEnclave(
        keys=keys,
        custodian_key=custodian_key,
        loan=loan,
        statement=statement,
        model=model,
        attestation=attestation,
        judged=now,
        document=presented.document,
    )


def _check_nonce(document: AttestationDocument, nonce: bytes) -> None:
    if document.nonce != nonce:
        raise VerificationError(
            "the attestation document answers another question",
            code="channel.nonce",
            expected=nonce.hex(),
            came=document.nonce[: len(nonce)].hex(),
            mend="nothing: an old document was played again, or the enclave is broken",
        )


def _check_tls_key(keys: EnclaveKeys, presented: Presented) -> None:
    if keys.tls_spki_sha256 != presented.spki_sha256:
        raise VerificationError(
            "the attested TLS key is not the key of this connection",
            code="channel.tls_key",
            expected=presented.spki_sha256.hex(),
            came=keys.tls_spki_sha256[:DIGEST_BYTES].hex(),
            mend="connect to the enclave itself: something in between ends the TLS connection",
        )


def _check_names(document: AttestationDocument, custodian_key: bytes, loan: LoanId) -> None:
    if document.custodian_key != custodian_key:
        raise VerificationError(
            "the enclave serves another custodian",
            code="channel.custodian",
            expected=fingerprint(custodian_key),
            came=fingerprint(document.custodian_key),
            mend="use the manifest.toml of this enclave's custodian, if you trust it",
        )
    if document.loan != loan:
        raise RefusedError(
            "the enclave holds another loan",
            code="channel.loan",
            expected=loan,
            came=document.loan[:MAX_SHOWN_CHARACTERS],
            mend="check the address, or use the manifest.toml of that loan",
        )


def _open_statement(
    document: AttestationDocument, custodian_key: bytes, loan: LoanId, now: datetime
) -> SessionStatement:
    statement = open_signed(
        document.statement,
        SessionStatement,
        public_key=custodian_key,
        label=Label.SESSION_STATEMENT,
    )
    if statement.loan != loan or statement.keys != document.keys:
        raise VerificationError(
            "the custodian's statement is about another session",
            code="channel.statement",
            expected=f"these keys hold {loan}",
            came=f"other keys or another loan, in session {statement.session}",
            mend="nothing: the statement of another enclave was shown",
        )
    # `issued` is by the custodian's clock, and what runs out is short: a clock that is a
    # little behind must not refuse what is fresh
    if statement.issued > now + CLOCK_SKEW:
        raise VerificationError(
            "the custodian's statement is from the future",
            code="channel.statement_time",
            expected=f"issued by {now:%FT%TZ}",
            came=f"{statement.issued:%FT%TZ}",
            mend="set this machine's clock",
        )
    if statement.expires <= now:
        raise UnavailableError(
            "the custodian's word on this session has run out",
            code="channel.statement_expired",
            came=f"expired {statement.expires:%FT%TZ}, now {now:%FT%TZ}",
            mend="wait until the enclave reaches its custodian again; check this machine's clock",
        )
    return statement


def _check_model(model: VerifiedManifest, statement: SessionStatement) -> None:
    if model.digest != statement.model_digest:
        raise VerificationError(
            "the enclave shows another model than the one it was lent",
            code="channel.model",
            expected=statement.model_digest.hex(),
            came=model.digest.hex(),
        )


def _tee(documents: Documents) -> Tee:
    try:
        return Tee(documents.tee)
    except ValueError:
        raise MalformedError(
            "a kind of TEE that is not known here",
            expected=", ".join(Tee),
            came=repr(documents.tee[:MAX_SHOWN_CHARACTERS]),
        ) from None


class _Findings:
    """Notes what fails, so that a refusal tells all of it."""

    def __init__(self) -> None:
        self._errors: list[AIGovToolError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the error of one check and go on with the next."""
        try:
            yield
        except AIGovToolError as error:
            self._errors.append(error)

    def raise_any(self) -> None:
        """Raise the gravest error noted, with the reasons of all."""
        for kind in _GRAVEST_FIRST:
            for error in self._errors:
                if isinstance(error, kind):
                    others = (e for e in self._errors if e is not error)
                    error.reasons += tuple(r for other in others for r in other.reasons)
                    raise error
        if self._errors:
            raise self._errors[0]
