"""
The receipts that a consumer kept, checked offline.

1. A session is believed as it was when it was judged: its attestation document, at that time, under
   the consumer's manifest (`channel.judge`). What names its own key is not believed for that.
2. A receipt is genuine when the session's attested key signed it, and about this consumer when it
   names the manifest's loan, the session's model, and the consumer whose file it is in.
3. Genuine receipts make chains (`chains`).

A document is judged as of the time that the consumer noted beside it: its nonce was the consumer's,
its TLS key that of the consumer's connection, and both are the consumer's own word to itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.channel.fetch import Presented
from aigovtool.channel.judge import VerifiedEnclave, judge_enclave
from aigovtool.errors import AIGovToolError
from aigovtool.ids import ConsumerId, SessionId
from aigovtool.proof.chains import GenuineReceipt, check_leases_of_sessions, check_session
from aigovtool.proof.findings import Finding, Findings
from aigovtool.proof.receipt_signature import verify_receipt_signature
from aigovtool.wire.codec import Message, Signed, Time, decode
from aigovtool.wire.enrolment import AttestationDocument
from aigovtool.wire.receipt import Receipt


class KeptSession(Message, frozen=True, kw_only=True):
    """
    What a consumer keeps of a session, once: enough to believe its receipts later.

    Args:
        judged: when the document was judged; the certificates under it were valid then.
        document: the `AttestationDocument`, as it came.
        manifest: the consumer's ``manifest.toml`` under which it was accepted.
    """

    judged: Time
    document: bytes
    manifest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptReceipt:
    """
    A receipt as it was kept.

    Args:
        source: file and line, for people.
        consumer: whose file it is in, None when that is not said.
        signed: as it came; None when the line cannot be read.
    """

    source: str
    consumer: ConsumerId | None
    signed: Signed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """
    What came of a check.

    Args:
        findings: what does not hold; nothing when all is in order.
        genuine: receipts whose signature held, each once.
        sessions: the sessions that they are of, as they were judged.
    """

    findings: tuple[Finding, ...]
    genuine: tuple[GenuineReceipt, ...]
    sessions: Mapping[SessionId, VerifiedEnclave]

    @property
    def cost(self) -> int:
        """Credits charged by all genuine receipts."""
        return sum(each.receipt.cost for each in self.genuine)


def check_receipts(
    kept: Sequence[KeptReceipt],
    sessions: Mapping[SessionId, KeptSession],
    *,
    policy: Policy | None = None,
) -> Checked:
    """
    Check receipts and the sessions that they name.

    Args:
        policy: the consumer's manifest; None takes the one that was kept with each session.
    """
    findings = Findings()
    believed: dict[SessionId, VerifiedEnclave | None] = {}
    genuine: dict[bytes, GenuineReceipt] = {}
    for each in kept:
        receipt = _read(each, findings)
        if receipt is None or each.signed is None:
            continue
        if receipt.session not in believed:
            believed[receipt.session] = _believe(receipt.session, sessions, policy, findings)
        enclave = believed[receipt.session]
        if enclave is None:
            continue  # said once, of the session
        if _is_genuine(each, each.signed, receipt, enclave, findings):
            genuine[each.signed.payload] = GenuineReceipt(
                receipt=receipt, payload=each.signed.payload, source=each.source
            )
    _check_chains(genuine.values(), findings)
    return Checked(
        findings=findings.all(),
        genuine=tuple(genuine.values()),
        sessions={name: one for name, one in believed.items() if one is not None},
    )


def _check_chains(genuine: Collection[GenuineReceipt], findings: Findings) -> None:
    sessions: defaultdict[SessionId, list[GenuineReceipt]] = defaultdict(list)
    for each in genuine:
        sessions[each.receipt.session].append(each)
    for receipts in sessions.values():
        check_session(receipts, findings)
    check_leases_of_sessions(genuine, findings)


def _read(each: KeptReceipt, findings: Findings) -> Receipt | None:
    if each.signed is None:
        findings.add("receipt.unreadable", each.source, "it is not a receipt, or not a whole one")
        return None
    with findings.noted("receipt.unreadable", each.source):
        return decode(each.signed.payload, Receipt)
    return None


def _believe(
    session: SessionId,
    sessions: Mapping[SessionId, KeptSession],
    policy: Policy | None,
    findings: Findings,
) -> VerifiedEnclave | None:
    """Judge a session as it was judged then; note why not."""
    kept = sessions.get(session)
    if kept is None:
        findings.add(
            "session.missing",
            session,
            "no attestation document is kept for it, so nothing shows whose key signs for it",
        )
        return None
    with findings.noted("session.refused", session):
        enclave = judge_kept(kept, policy or parse_policy(kept.manifest))
        if enclave.statement.session == session:
            return enclave
        findings.add(
            "session.refused",
            session,
            "the custodian's statement that is kept for it is about another session",
            came=enclave.statement.session,
        )
    return None


def judge_kept(kept: KeptSession, policy: Policy) -> VerifiedEnclave:
    """Judge a kept document as of when it was judged; raises as `judge_enclave`."""
    document = decode(kept.document, AttestationDocument)
    return judge_enclave(
        Presented(
            document=kept.document,
            certificate_pem=b"",
            spki_sha256=document.keys.tls_spki_sha256,
        ),
        nonce=document.nonce,
        policy=policy,
        now=kept.judged,
    )


def _is_genuine(
    each: KeptReceipt,
    signed: Signed,
    receipt: Receipt,
    enclave: VerifiedEnclave,
    findings: Findings,
) -> bool:
    subject = f"receipt {receipt.number} of {receipt.session} ({each.source})"
    try:
        verify_receipt_signature(signed, public_key=enclave.keys.signing_key)
    except AIGovToolError:
        findings.add("receipt.forged", subject, "the session's attested key did not sign it")
        return False
    for what, expected, came in (
        ("loan", enclave.loan, receipt.loan),
        ("model", enclave.model.digest.hex(), receipt.model_digest.hex()),
        ("consumer", each.consumer or receipt.consumer, receipt.consumer),
    ):
        if expected != came:
            findings.add(
                "receipt.foreign",
                subject,
                f"it is about another {what}",
                expected=expected,
                came=came,
            )
            return False
    return True
