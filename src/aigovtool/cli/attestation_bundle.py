"""``aigovtool attestation bundle``: everything that a verification needs, in one file."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click

from aigovtool.attestation.appraise import AttestationResult, appraise
from aigovtool.attestation.dcap.chain import Span
from aigovtool.attestation.evidence import Endorsements, Evidence, Tee
from aigovtool.attestation.kinds import KINDS
from aigovtool.attestation.policy import Policy, parse_policy
from aigovtool.attestation.strict import strict_policy
from aigovtool.attestation.verify import verify as verify_evidence
from aigovtool.cli.evidence_files import read_endorsements, read_evidence
from aigovtool.cli.evidence_files import read_file as read_evidence_file
from aigovtool.cli.output import Time, exits, json_option, print_json, talk, warn_simulated
from aigovtool.endorsements.bundle import (
    MAX_BUNDLE_BYTES,
    Bundle,
    make_bundle,
    read_bundle,
    write_bundle,
)
from aigovtool.endorsements.collector import Services, open_collector
from aigovtool.endorsements.spans import ALWAYS
from aigovtool.errors import ConfigurationError

_NAME_COLUMNS = 16


_path = click.Path(exists=True, path_type=Path)
_policy_option = click.option(
    "--policy",
    "policy_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="manifest.toml.",
)


@click.group()
def bundle() -> None:
    """Pack evidence and endorsements into one file, and judge such a file, offline.

    Exit codes: 0 accepted or made, 1 refused (with every reason), 2 malformed or misused,
    3 a vendor cannot be reached (create --fetch).
    """


@bundle.command()
@click.option(
    "--tee",
    type=click.Choice([tee.value for tee in KINDS]),
    required=True,
    callback=lambda _ctx, _param, value: Tee(value),
    help="Kind of evidence.",
)
@click.option(
    "--evidence",
    "evidence_path",
    type=_path,
    required=True,
    help="File as the platform gave it, or a folder of files under their usual names.",
)
@click.option(
    "--endorsements",
    "endorsements_path",
    type=_path,
    help="Collateral (JSON), a certificate, or a folder. Default: the folder of the evidence, "
    "when that is a folder.",
)
@click.option("--fetch", is_flag=True, help="Visit the vendors for what is missing.")
@click.option("--pccs", metavar="URL", help="With --fetch: a PCCS instead of Intel's service.")
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --fetch: folder for what vendors answer.",
)
@_policy_option
@click.option(
    "--output",
    "-o",
    "output_path",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write; an existing one is replaced.",
)
@json_option
@exits
def create(
    *,
    tee: Tee,
    evidence_path: Path,
    endorsements_path: Path | None,
    fetch: bool,
    pccs: str | None,
    cache: Path | None,
    policy_path: Path | None,
    output_path: Path,
    as_json: bool,
) -> None:
    """Make a bundle, and see that it can be verified within its time."""
    if not fetch and (pccs is not None or cache is not None):
        raise ConfigurationError(
            "--pccs and --cache say how to fetch", code="bundle.options", mend="add --fetch"
        )
    evidence = read_evidence(tee, evidence_path)
    if endorsements_path is None and evidence_path.is_dir():
        endorsements_path = evidence_path
    endorsements = (
        Endorsements(tee=tee)
        if endorsements_path is None
        else read_endorsements(tee, endorsements_path)
    )
    if fetch:
        endorsements = asyncio.run(_collect(evidence, endorsements, pccs=pccs, cache=cache))
    policy = None if policy_path is None else read_evidence_file(policy_path)
    if policy is not None:
        parse_policy(policy)
    made = make_bundle(evidence, endorsements, policy=policy)
    moment = _moment_within(made.span, datetime.now(UTC))
    verify_evidence(evidence, endorsements, now=moment)
    data = write_bundle(made)
    _write(output_path, data)
    if as_json:
        print_json({"file": str(output_path), "bytes": len(data), **_span_json(made.span)})
    else:
        click.echo(f"{output_path}: {len(data)} bytes, {_span_text(made.span)}")
    _warn_of_time(made.span, datetime.now(UTC))


@bundle.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_policy_option
@click.option("--time", "now", type=Time(), help="Judge as of this time, RFC 3339. Default: now.")
@json_option
@exits
def verify(*, file: Path, policy_path: Path | None, now: datetime | None, as_json: bool) -> None:
    """Is the evidence in this bundle genuine, and does the policy accept it?

    The policy is the one given; else the one in the bundle, which is its maker's word; else the
    strict policy, which leaves measurements free.
    """
    opened = read_bundle(_read(file))
    tee = opened.evidence.tee
    policy, whose = _policy(opened, policy_path)
    moment = now or datetime.now(UTC)
    result = appraise(verify_evidence(opened.evidence, opened.endorsements, now=moment), policy)
    if result.simulated:
        warn_simulated()
    if as_json:
        print_json(_result_json(result, opened, whose))
    else:
        for name, text in (
            ("accepted by", f"alternative {result.alternative} of {whose}"),
            ("tee", tee),
            ("measurement", result.measurement),
            ("report data", result.claims.report_data.hex() or "none"),
            ("TCB status", result.tcb_status or "not known for this kind"),
            ("verifiable", _span_text(opened.span)),
        ):
            click.echo(f"{name:<{_NAME_COLUMNS}} {text}")
        for warning in result.warnings:
            talk.print(f"note: {warning}", markup=False)
    if policy_path is None:
        talk.print(f"note: judged by {whose}; give your own with --policy", markup=False)


async def _collect(
    evidence: Evidence, endorsements: Endorsements, *, pccs: str | None, cache: Path | None
) -> Endorsements:
    async with open_collector(Services.by(pccs=pccs), cache=cache) as collector:
        return await collector.collect(evidence, have=endorsements, now=datetime.now(UTC))


def _policy(opened: Bundle, path: Path | None) -> tuple[Policy, str]:
    if path is not None:
        return parse_policy(read_evidence_file(path)), "the policy given"
    if opened.policy is not None:
        return parse_policy(opened.policy), "the policy inside the bundle"
    tee = opened.evidence.tee
    return Policy(accept=(strict_policy(tee),), custodian=None), "the strict policy"


def _moment_within(span: Span | None, now: datetime) -> datetime:
    """Return *now*, or when that is outside of *span*, its middle."""
    if span is None or span.start <= now <= span.end:
        return now
    return span.start + (span.end - span.start) / 2


def _warn_of_time(span: Span | None, now: datetime) -> None:
    if span is None:
        talk.print("note: at no time do all of its documents count together", markup=False)
    elif not span.start <= now <= span.end:
        talk.print("note: out of its time today; verify it with --time", markup=False)


def _span_text(span: Span | None) -> str:
    if span is None:
        return "never as a whole"
    if span == ALWAYS:
        return "at any time"
    return f"from {span.start.isoformat()} to {span.end.isoformat()}"


def _span_json(span: Span | None) -> dict[str, str | None]:
    return {
        "valid_from": None if span is None else span.start.isoformat(),
        "valid_until": None if span is None else span.end.isoformat(),
    }


def _result_json(result: AttestationResult, opened: Bundle, whose: str) -> dict[str, object]:
    return {
        "accepted": True,
        "tee": result.tee,
        "simulated": result.simulated,
        "measurement": result.measurement,
        "report_data": result.claims.report_data.hex(),
        "tcb_status": result.tcb_status,
        "advisories": list(result.advisories),
        "warnings": list(result.warnings),
        "platform_id": result.platform_id,
        "judged_by": whose,
        "alternative": result.alternative,
        **_span_json(opened.span),
    }


def _read(path: Path) -> bytes:
    """Read a bundle; one that is longer than any is cut, and refused as too large."""
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read", code="file", came=error.strerror
        ) from None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written", code="file", came=error.strerror
        ) from None
