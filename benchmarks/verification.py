"""
What one verification takes, collateral in hand: ours, ours in a new process, dcap-qvl alone.

Recorded evidence of each kind is verified in turn (A B C A B C …), whole: from the bytes as they
came to claims. "Again" is a verifier that has seen this vendor's authorities and lists before, as a
custodian has; "first" forgets them before each run. dcap-qvl is called with its collateral already
parsed and does about a half of the work that `verify` does: SGX and TDX are judged by both.

    python -m benchmarks.verification [--rounds 200] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import dcap_qvl

from aigovtool.attestation import x509chain
from aigovtool.attestation.dcap import chain
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.verify import verify
from aigovtool.cli.evidence_files import COLLATERAL, endorsements_of, evidence_of
from aigovtool.cli.vectors import _tee_of, read_manifest

VECTORS = Path(os.environ.get("AIGOVTOOL_VECTORS") or Path(__file__).parents[2] / "shared")
CHOSEN = (
    "sgx/v3-config-and-swhardening",
    "tdx/v4-up-to-date",
    "tdx/v5-up-to-date",
    "snp/milan-v3",
    "snp/genoa-v3",
    "snp/turin-v5",
    "snp/milan-v3-vlek",
    "nitro/production",
    "azure-snp/genoa",
    "azure-tdx/ak-chain",
    "tpm2/gce-shielded-vm",
    "nvidia/h100-rim-on-hold",
    "nvidia/h100-full",
    "composite/tdx-h100",
)
GOAL_MS = 2.0

Run = Callable[[], object]


def forget() -> None:
    """Empty everything that verifications remember."""
    for remembering in (
        x509chain._parse,
        x509chain._check_link_remembering,
        x509chain._read_crl,
        chain._read_chain,
        chain._signed_tcb_info,
        chain._signed_qe_identity,
    ):
        remembering.cache_clear()


def alone(quote: bytes, collateral_json: bytes, now: datetime) -> Run:
    """dcap-qvl and nothing else; raises nothing for the vectors chosen."""
    collateral = dcap_qvl.QuoteCollateralV3.from_json(collateral_json.decode())
    verifier = dcap_qvl.QuoteVerifier(
        (VECTORS / "evidence" / "roots" / "intel_sgx_root_ca.der").read_bytes()
    )
    now_s = int(now.timestamp())
    policy = dcap_qvl.QuotePolicy.claims_only(now_s)
    return lambda: verifier.verify_with_policy(quote, collateral, now_s, policy)


def runs() -> dict[str, dict[str, Run]]:
    """By vector, what is timed; each is run once, so that a refusal is seen before the clock."""
    root = VECTORS / "evidence"
    found: dict[str, dict[str, Run]] = {}
    for vector in read_manifest(root).vectors:
        if vector.id not in CHOSEN:
            continue
        case, tee = vector.cases[0], _tee_of(vector)
        roles = dict(vector.files)
        if case.collateral is not None:
            roles[COLLATERAL] = case.collateral
        place = root / vector.id
        evidence, endorsements = evidence_of(tee, place, roles), endorsements_of(tee, place, roles)

        def ours(
            evidence: object = evidence,
            endorsements: object = endorsements,
            now: datetime = case.verification_time,
        ) -> object:
            return verify(evidence, endorsements, now=now)  # type: ignore[arg-type]  # bound above

        variants: dict[str, Run] = {"again": ours, "first": ours}
        if tee in (Tee.SGX, Tee.TDX):
            collateral = (place / str(case.collateral)).read_bytes()
            quote = evidence.document("quote")
            variants["dcap-qvl"] = alone(quote, collateral, case.verification_time)
        for run in variants.values():
            run()
        found[vector.id] = variants
    return found


def measure(rounds: int) -> list[Mapping[str, object]]:
    """Return a row for each vector: medians in milliseconds, and the ratio to dcap-qvl."""
    everything = runs()
    times: dict[tuple[str, str], list[float]] = {}
    gc.disable()
    for _ in range(rounds):
        for name, variants in everything.items():
            for variant, run in variants.items():
                if variant == "first":
                    forget()
                elif variant == "again":
                    run()
                start = time.perf_counter()
                run()
                times.setdefault((name, variant), []).append(time.perf_counter() - start)
        gc.collect()
    rows: list[Mapping[str, object]] = []
    for name, variants in everything.items():
        row: dict[str, object] = {"vector": name}
        for variant in variants:
            row[f"{variant}_ms"] = round(statistics.median(times[name, variant]) * 1000, 2)
        if "dcap-qvl" in variants:
            pairs = zip(times[name, "again"], times[name, "dcap-qvl"], strict=True)
            row["ratio"] = round(statistics.median(mine / qvl for mine, qvl in pairs), 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.rounds)
    if options.json:
        print(json.dumps({"rounds": options.rounds, "rows": rows}, indent=2))
        return
    print(f"medians of {options.rounds} rounds, ms; the goal is {GOAL_MS:g} for one of a kind")
    print(f"{'vector':32}{'again':>8}{'first':>8}{'dcap-qvl':>10}{'again / dcap-qvl':>18}")
    for row in rows:
        print(
            f"{row['vector']:32}{row['again_ms']:>8}{row['first_ms']:>8}"
            f"{row.get('dcap-qvl_ms', ''):>10}{row.get('ratio', ''):>18}"
        )


if __name__ == "__main__":
    main()
