"""
Every byte of every recorded vector, flipped: the campaign behind `test_flips`.

    python -m tests.attestation.flips [--exhaustive] [--json]

One bit of one byte is changed, in the evidence or in the endorsements, and the whole is verified
again. A byte is *signed* when somebody's signature or hash covers it, and then the flip must be
refused. The bytes that nobody signs are listed in `unsigned`; a flip there may be refused as well,
or must leave the claims exactly as they were.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from xml.etree.ElementTree import ParseError, canonicalize

from aigovtool.attestation.claims import Claims
from aigovtool.attestation.composite import CompositeClaims
from aigovtool.attestation.dcap.claims import TdxClaims
from aigovtool.attestation.evidence import Endorsements, Evidence
from aigovtool.attestation.nvidia.claims import NvidiaClaims
from aigovtool.attestation.nvidia.ocsp import Revocation
from aigovtool.attestation.verify import verify
from aigovtool.cli.evidence_files import COLLATERAL, endorsements_of, evidence_of
from aigovtool.cli.vectors import Case, Vector, _tee_of, read_manifest
from aigovtool.errors import MalformedError, VerificationError
from tests.shared_data import shared

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.S)
_TDREPORT = range(32, 32 + 1184)  # of an HCL report; only the machine itself can check it
SMALL_BYTES = 32 * 1024  # all but NVIDIA's RIMs, which have up to 300 kB and take 20 ms each time
MANY_SAMPLES = 2000
REFUSED, WITHOUT_EFFECT = "refused", "without effect"


@dataclass(frozen=True, slots=True)
class Target:
    """One authentic case of the manifest, as the verifier takes it."""

    vector: Vector
    case: Case
    evidence: Evidence
    endorsements: Endorsements

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """Yield every document under the name ``evidence/…`` or ``endorsements/…``."""
        for name, body in self.evidence.documents.items():
            yield f"evidence/{name}", body
        for name, body in self.endorsements.documents.items():
            yield f"endorsements/{name}", body

    def verify(self, name: str = "", body: bytes = b"") -> Claims:
        """Verify, with one document changed."""
        kind, _, document = name.partition("/")
        evidence, endorsements = self.evidence, self.endorsements
        if kind == "evidence":
            evidence = replace(evidence, documents={**evidence.documents, document: body})
        elif kind:
            changed = {**endorsements.documents, document: body}
            endorsements = replace(endorsements, documents=changed)
        return verify(evidence, endorsements, now=self.case.verification_time)


def targets() -> list[Target]:
    """Return the first authentic case of each vector; skips without vectors."""
    root = shared("evidence")
    found = []
    for vector in read_manifest(root).vectors:
        case = next((one for one in vector.cases if one.expected["authentic"]), None)
        if case is None:
            continue  # what is not authentic is refused as it is
        tee = _tee_of(vector)
        roles = dict(vector.files)
        if case.collateral is not None:
            roles[COLLATERAL] = case.collateral
        place = root / vector.id
        evidence, endorsements = evidence_of(tee, place, roles), endorsements_of(tee, place, roles)
        found.append(Target(vector, case, evidence, endorsements))
    return found


def unsigned(name: str, body: bytes, altered: bytes, place: int) -> str | None:
    """Say why nobody signs the byte at *place*, or return None for a signed one."""
    document = name.rpartition("/")[2]
    certificates = _certificates(body)
    if certificates and certificates == _certificates(altered):
        return "PEM wording"
    if document.endswith("vcek") and certificates[:1] == _certificates(altered)[:1] != []:
        return "chain appended to a VCEK, which is not read"
    if document.endswith("pcrs"):
        return "spelling of PCR values"
    if document.endswith("event_log"):
        return "event log beside its digests"
    if document == "hcl_report" and place in _TDREPORT:
        return "TDREPORT"
    if document.endswith(".xml") and _canonical(body) == _canonical(altered):
        return "XML before canonicalization"
    if document == "ak_public":
        return "no certificate covers the key"
    return None


def _certificates(body: bytes) -> list[bytes]:
    """Return the certificates of a document, as the base64 of each without its line ends."""
    return [b"".join(found.split()) for found in _PEM.findall(body)]


def _canonical(body: bytes) -> str | None:
    """Return an XML document in canonical form, without white space; None when it is none."""
    try:
        return "".join(canonicalize(body.decode()).split())
    except (ParseError, UnicodeDecodeError):
        return None


def places(target: Target, samples: int | None) -> Iterator[tuple[str, bytes, int]]:
    """
    Yield document, body and place of each flip: *samples* of each document, the same each time.

    Without *samples*: every byte, and of documents over `SMALL_BYTES` `MANY_SAMPLES`.
    """
    for name, body in target.documents():
        number = samples or (len(body) if len(body) <= SMALL_BYTES else MANY_SAMPLES)
        drawn = random.Random(f"{target.vector.id} {name}")
        for place in drawn.sample(range(len(body)), min(number, len(body))):
            yield name, body, place


def campaign(target: Target, samples: int | None) -> Counter[str]:
    """
    Flip, verify, count.

    Returns:
        How many were refused, and how many were without effect for which reason.

    Raises:
        AssertionError: a flip of a signed byte was accepted, or any flip changed the claims.
    """
    counts: Counter[str] = Counter()
    honest = target.verify()
    for name, body, place in places(target, samples):
        altered = bytearray(body)
        altered[place] ^= 1 << (place % 8)
        try:
            claims = target.verify(name, bytes(altered))
        except (MalformedError, VerificationError):
            counts[REFUSED] += 1
            continue
        where = f"{target.vector.id} {name} byte {place}"
        if "ocsp." in name and revocations(claims) != revocations(honest):
            # an answer about some other certificate is passed over: then nothing is known
            assert revocations(claims) < revocations(honest), where
            counts["OCSP answer lost, which the policy refuses"] += 1
            continue
        if believes_less(claims, honest):
            counts["run-time event not believed any more"] += 1
            continue
        assert claims == honest, f"{where}: accepted with other claims"
        why = unsigned(name, body, bytes(altered), place)
        if why is None and "ocsp." in name:
            why = "OCSP response that is out of date at this time"
        assert why is not None, f"{where}: a signed byte has no effect"
        counts[f"{WITHOUT_EFFECT}: {why}"] += 1
    return counts


def believes_less(claims: Claims, honest: Claims) -> bool:
    """Say whether *claims* are the honest ones but for run-time events that tell nothing now."""
    if not isinstance(claims, TdxClaims) or not isinstance(honest, TdxClaims):
        return False
    if claims.events == honest.events or not claims.events or not honest.events:
        return False
    stripped = (
        mine == theirs or mine == replace(theirs, event_type=None, name=None, payload=None)
        for mine, theirs in zip(claims.events, honest.events, strict=True)
    )
    return all(stripped) and replace(claims, events=honest.events) == honest


_RANK = {state: rank for rank, state in enumerate(Revocation)}


def revocations(claims: Claims) -> list[int]:
    """Return what is known of each chain of a GPU, in order, as a number: the higher the better."""
    gpu = claims.gpu if isinstance(claims, CompositeClaims) else claims
    if not isinstance(gpu, NvidiaClaims):
        return []
    chains = [
        state
        for device in gpu.devices
        for state in (
            device.revocation,
            device.driver_rim and device.driver_rim.revocation,
            device.vbios_rim and device.vbios_rim.revocation,
        )
    ]
    return [_RANK[state] for state in chains if state]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exhaustive", action="store_true", help="every byte; takes half an hour")
    parser.add_argument("--samples", type=int, default=200, help="bytes of each document")
    parser.add_argument("--only", default="", help="vectors whose name holds this")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples = None if options.exhaustive else options.samples
    chosen = [one for one in targets() if options.only in one.vector.id]
    with ProcessPoolExecutor() as pool:
        jobs = {one.vector.id: pool.submit(campaign, one, samples) for one in chosen}
        results = {}
        for name, job in jobs.items():
            results[name] = dict(job.result())
            if not options.json:
                print(f"{name:32}{sum(results[name].values()):>8} flips  {results[name]}")
                sys.stdout.flush()
    if options.json:
        print(json.dumps(results, indent=2))
        return
    total: Counter[str] = Counter()
    for counts in results.values():
        total.update(counts)
    print(f"{total.total()} flips")
    for what, count in total.most_common():
        print(f"{count:>8}  {what}")


if __name__ == "__main__":
    main()
