"""
What was judged is kept as it came, so that anybody can judge it again (I6).

Rule 1: only accepted evidence is kept: what is refused could be anybody's, and would let whoever
        holds a ticket fill the disk. Its event names every reason.
Rule 2: documents are kept by their digest. Endorsements and policy, which most appraisals share,
        are kept once.
Rule 3: it is kept in the decision that it is the ground of, not before and not after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.custodian.ledger import Entry
from aigovtool.custodian.records import AppraisalRow
from aigovtool.custodian.store.base import Writing
from aigovtool.ids import SessionId, sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """
    What was judged, and when.

    Args:
        nonce: that the evidence answers, 32 bytes.
        evidence: as it came.
        endorsements: as they were used, those that were fetched here included.
        policy: text of the appraisal policy, TOML.
        judged: the time as of which certificates had to be valid, aware UTC.
    """

    nonce: bytes
    evidence: Evidence
    endorsements: Endorsements
    policy: bytes
    judged: datetime


def keep(entry: Entry, session: SessionId, exhibit: Exhibit) -> None:
    """Keep the evidence on which *session* was accepted."""
    entry.tx.insert_appraisal(
        AppraisalRow(
            session=session,
            nonce=exhibit.nonce,
            judged=exhibit.judged,
            tee=exhibit.evidence.tee.value,
            policy=_keep(entry.tx, exhibit.policy),
            evidence=_keep_all(entry.tx, exhibit.evidence.documents),
            endorsements=_keep_all(entry.tx, exhibit.endorsements.documents),
        )
    )


def _keep_all(tx: Writing, documents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: _keep(tx, body) for name, body in documents.items()}


def _keep(tx: Writing, body: bytes) -> bytes:
    digest = sha256(body)
    tx.keep_document(digest, body)
    return digest
