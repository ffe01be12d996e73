"""``aigovtool attestation``: judge, explain and compare evidence; write policies for it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from aigovtool.attestation.appraise import AttestationResult, appraise
from aigovtool.attestation.claims import Claims
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.kinds import KINDS, appraise_claims, tee_named
from aigovtool.attestation.policy import Policy, parse_policy, write_policy
from aigovtool.attestation.strict import strict_policy
from aigovtool.attestation.verify import verify as verify_evidence
from aigovtool.cli.attestation_bundle import bundle
from aigovtool.cli.attestation_ear import EarOrder, ear, ear_options
from aigovtool.cli.claims_text import claims_as_rows, jsonable
from aigovtool.cli.evidence_files import read_endorsements, read_evidence, read_file
from aigovtool.cli.output import (
    REFUSED,
    Time,
    exits,
    fail,
    json_option,
    print_json,
    result,
    talk,
    warn_simulated,
)
from aigovtool.errors import AIGovToolError, AppraisalError, VerificationError

_NAME_COLUMNS = 32
_TABLE_COLUMNS = 200  # where nobody looks at a terminal


_tee_option = click.option(
    "--tee",
    type=click.Choice([tee.value for tee in KINDS]),
    required=True,
    callback=lambda _ctx, _param, value: Tee(value),
    help="Kind of evidence.",
)
_evidence_option = click.option(
    "--evidence",
    "evidence_path",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="File as the platform gave it, or a folder of files under their usual names.",
)
_endorsements_option = click.option(
    "--endorsements",
    "endorsements_path",
    type=click.Path(exists=True, path_type=Path),
    help="Collateral (JSON), a certificate, or a folder. Default: the folder of the evidence, "
    "when that is a folder.",
)
_time_option = click.option(
    "--time", "now", type=Time(), help="Judge as of this time, RFC 3339. Default: now."
)
_POLICY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def attestation() -> None:
    """Verify, explain and compare attestation evidence, offline.

    Exit codes: 0 accepted, 1 refused (with every reason), 2 malformed or misused.
    """


attestation.add_command(bundle)
attestation.add_command(ear)


@attestation.command()
@_tee_option
@_evidence_option
@_endorsements_option
@click.option(
    "--policy",
    "policy_path",
    type=_POLICY_FILE,
    help="manifest.toml. Default: the strict policy, which leaves measurements free.",
)
@_time_option
@json_option
@exits
@ear_options
def verify(
    *,
    tee: Tee,
    evidence_path: Path,
    endorsements_path: Path | None,
    policy_path: Path | None,
    now: datetime | None,
    ear: EarOrder | None,
    as_json: bool,
) -> None:
    """Is this evidence genuine, and does the policy accept it?

    What the evidence is bound to (nonce, keys) is not judged here: its report data is printed.
    """
    now = now or datetime.now(UTC)
    policy = _policy_text(policy_path, tee)
    rules = parse_policy(policy)
    if tee is Tee.SIMULATED:
        warn_simulated()
    evidence, endorsements = _read(tee, evidence_path, endorsements_path)
    claims: Claims | None = None
    try:
        claims = verify_evidence(evidence, endorsements, now=now)
        accepted = appraise(claims, rules)
    except (VerificationError, AppraisalError) as error:
        if ear is not None:
            ear.write(error, evidence=evidence, policy=policy, now=now)
        if as_json:
            print_json(_refusal(error, claims))
            sys.exit(REFUSED)
        fail(error, as_json=False)
    if ear is not None:
        ear.write(accepted, evidence=evidence, policy=policy, now=now)
    if as_json:
        print_json(_acceptance(accepted))
    else:
        _print_acceptance(accepted)


@attestation.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
@exits
def vectors(folder: Path, as_json: bool) -> None:
    """Judge every case of a folder of recorded evidence, and hold it against what is expected."""
    from aigovtool.cli.vectors import CaseResult, judge_folder

    def row(case: CaseResult) -> list[str]:
        return [
            "ok" if case.ok else "[bold red]not as expected[/]",
            case.id,
            case.case,
            "?" if case.authentic is None else "yes" if case.authentic else "no",
            case.tcb_status or "",
            case.strict_policy,
            "; ".join(case.reasons),
        ]

    cases = list(judge_folder(folder))
    if as_json:
        print_json(cases)
    else:
        table = Table("", "vector", "case", "authentic", "TCB", "strict", "reasons", box=None)
        for case in cases:
            table.add_row(*row(case))
        width = None if sys.stdout.isatty() else _TABLE_COLUMNS
        Console(highlight=False, width=width).print(table)
    wrong = sum(not case.ok for case in cases)
    talk.print(f"{len(cases) - wrong} of {len(cases)} cases as expected")
    if wrong:
        sys.exit(REFUSED)


@attestation.command()
@_tee_option
@_evidence_option
@_endorsements_option
@_time_option
@json_option
@exits
def explain(
    *,
    tee: Tee,
    evidence_path: Path,
    endorsements_path: Path | None,
    now: datetime | None,
    as_json: bool,
) -> None:
    """Show everything that genuine evidence says, without judging whether it will do."""
    claims = _verify(tee, evidence_path, endorsements_path, now)
    if as_json:
        print_json(jsonable(claims))
    else:
        _print_rows(claims_as_rows(claims))


@attestation.command()
@_tee_option
@_evidence_option
@_endorsements_option
@click.option("--policy", "policy_path", type=_POLICY_FILE, required=True, help="manifest.toml.")
@_time_option
@json_option
@exits
def diff(
    *,
    tee: Tee,
    evidence_path: Path,
    endorsements_path: Path | None,
    policy_path: Path,
    now: datetime | None,
    as_json: bool,
) -> None:
    """Hold genuine evidence against every alternative of a policy, rule by rule."""
    policy = parse_policy(read_file(policy_path))
    claims = _verify(tee, evidence_path, endorsements_path, now)
    differences = {
        position: appraise_claims(claims, alternative)
        for position, alternative in enumerate(policy.accept)
        if tee_named(alternative) is tee
    }
    if as_json:
        print_json(
            [
                {"alternative": position, "accepts": not reasons, "reasons": reasons}
                for position, reasons in differences.items()
            ]
        )
    elif not differences:
        result.print(f"the policy has no alternative for {tee}")
    else:
        for position, reasons in differences.items():
            verdict = "refuses" if reasons else "accepts"
            result.print(f"accept[{position}]: {verdict}", markup=False)
            for reason in reasons:
                result.print(f"  {reason.code}: {reason.message}", markup=False)
                result.print(f"    - {reason.expected}\n    + {reason.came}", markup=False)
    if all(differences.values()):
        sys.exit(REFUSED)


@attestation.group()
def policy() -> None:
    """Write policies (manifest.toml)."""


@policy.command("from-evidence")
@_tee_option
@_evidence_option
@_endorsements_option
@_time_option
@exits
def from_evidence(
    *, tee: Tee, evidence_path: Path, endorsements_path: Path | None, now: datetime | None
) -> None:
    """Write the strict policy that accepts exactly what this evidence shows."""
    from aigovtool.attestation.propose import propose

    claims = _verify(tee, evidence_path, endorsements_path, now)
    alternative = propose(claims)
    click.echo(
        write_policy(
            Policy(accept=(alternative,), custodian=None),
            preface=f"Proposed from {tee} evidence. Compare each measurement with a build of your\n"
            "own before you rely on it: evidence proves what runs, not that it is good.",
        )
    )
    for reason in appraise_claims(claims, alternative):
        talk.print(f"note: it refuses the very evidence it came from: {reason}", markup=False)


@policy.command("import")
@click.argument("manifest", type=_POLICY_FILE)
@exits
def import_(manifest: Path) -> None:
    """Turn a manifest.toml of BlindAI or of the first AIGovTool into ours."""
    from aigovtool.attestation.original_manifest import import_manifest

    click.echo(
        write_policy(
            Policy(accept=(import_manifest(read_file(manifest)),), custodian=None),
            preface=f"Imported from {manifest.name}. It accepts what the original accepted, as\n"
            'freely: look at each "any", and at tcb_statuses.',
        )
    )


def _policy_text(path: Path | None, tee: Tee) -> bytes:
    """Return the file's own bytes, or the strict policy as it would be written."""
    if path is not None:
        return read_file(path)
    return write_policy(Policy(accept=(strict_policy(tee),), custodian=None)).encode()


def _verify(
    tee: Tee, evidence_path: Path, endorsements_path: Path | None, now: datetime | None
) -> Claims:
    evidence, endorsements = _read(tee, evidence_path, endorsements_path)
    return verify_evidence(evidence, endorsements, now=now or datetime.now(UTC))


def _read(
    tee: Tee, evidence_path: Path, endorsements_path: Path | None
) -> tuple[Evidence, Endorsements]:
    evidence = read_evidence(tee, evidence_path)
    if endorsements_path is None and evidence_path.is_dir():
        endorsements_path = evidence_path
    if endorsements_path is None:
        return evidence, Endorsements(tee=tee)
    return evidence, read_endorsements(tee, endorsements_path)


def _refusal(error: AIGovToolError, claims: Claims | None) -> dict[str, object]:
    return {
        "accepted": False,
        "authentic": claims is not None,
        "reasons": error.reasons,
        "claims": None if claims is None else jsonable(claims),
    }


def _acceptance(accepted: AttestationResult) -> dict[str, object]:
    return {
        "accepted": True,
        "authentic": True,
        "tee": accepted.tee,
        "simulated": accepted.simulated,
        "measurement": accepted.measurement,
        "tcb_status": accepted.tcb_status,
        "advisories": accepted.advisories,
        "warnings": accepted.warnings,
        "platform_id": accepted.platform_id,
        "report_data": accepted.claims.report_data.hex(),
        "valid_until": accepted.valid_until,
        "alternative": accepted.alternative,
        "reasons": [],
        "claims": jsonable(accepted.claims),
    }


def _print_acceptance(accepted: AttestationResult) -> None:
    valid_until = accepted.valid_until
    _print_rows(
        [
            ("accepted by", f"alternative {accepted.alternative} of the policy"),
            ("tee", accepted.tee),
            ("measurement", accepted.measurement),
            ("report data", accepted.claims.report_data.hex() or "none"),
            ("TCB status", accepted.tcb_status or "not known for this kind"),
            ("advisories", ", ".join(accepted.advisories) or "none"),
            ("platform", accepted.platform_id or "hidden"),
            ("valid until", "no endorsement expires" if valid_until is None else str(valid_until)),
        ]
    )
    for warning in accepted.warnings:
        talk.print(f"note: {warning}", markup=False)


def _print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, never cut: digests are there to be copied."""
    for name, value in rows:
        click.echo(f"{name:<{_NAME_COLUMNS}} {value}")
