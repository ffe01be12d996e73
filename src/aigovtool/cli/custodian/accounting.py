"""Statements: what a custodian signs about a loan, to hand to the borrower and the consumers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import click

from aigovtool.cli.custodian.group import custodian
from aigovtool.cli.custodian.remote import V1, Remote, loan_option, one_loan, with_remote
from aigovtool.cli.output import Time, exits, json_option, print_json, result, talk

_MONTH = re.compile(r"(\d{4})-(\d{2})")


class Period(click.ParamType[tuple[datetime, datetime]]):
    """A month, or two times."""

    name = "2026-11|FROM/TO"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[datetime, datetime]:
        text = str(value)
        if month := _MONTH.fullmatch(text):
            year, number = int(month[1]), int(month[2])
            try:
                begin = datetime(year, number, 1, tzinfo=UTC)
                end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
            except ValueError:
                self.fail(f"{text!r} is not a month such as 2026-11", param, ctx)
            return begin, end
        first, slash, last = text.partition("/")
        if not slash:
            self.fail(f"{text!r} is neither a month such as 2026-11 nor FROM/TO", param, ctx)
        time = Time()
        return time.convert(first, param, ctx), time.convert(last, param, ctx)


@custodian.command()
@loan_option
@click.option(
    "--period",
    type=Period(),
    required=True,
    help="A month in UTC, or two times in RFC 3339; up to now if its end is yet to come.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the statement.",
)
@with_remote
@json_option
@exits
def statement(
    *,
    loan: str | None,
    period: tuple[datetime, datetime],
    output: Path,
    remote: Remote,
    as_json: bool,
) -> None:
    """
    Write a signed account of a loan: grants, leases, settlements, forfeits, refunds, stops.

    The file holds all that is needed to check it offline for years; `aigovtool statement verify`
    does so.
    """
    from aigovtool.custodian import files
    from aigovtool.wire.codec import decode
    from aigovtool.wire.statement import MAX_STATEMENT_BYTES, Statement, read_file

    client = remote.client()
    begin, end = period
    data = client.download(
        f"{V1}/loans/{one_loan(client, loan)}/statement",
        MAX_STATEMENT_BYTES,
        begin=begin.isoformat(),
        end=end.isoformat(),
    )
    said = decode(read_file(data).statement.payload, Statement, max_bytes=MAX_STATEMENT_BYTES)
    files.write_whole(output, data.decode(), mode=0o644)
    talk.print(f"wrote {output}", markup=False)
    if as_json:
        print_json(
            {
                "output": str(output),
                "bytes": len(data),
                "loan": said.loan,
                "begin": said.begin,
                "end": said.end,
                "opening": said.opening,
                "closing": said.closing,
                "leases": len(said.leases),
                "sessions": len(said.sessions),
            }
        )
        return
    result.print(
        f"{said.loan}, {said.begin:%FT%TZ} to {said.end:%FT%TZ}: {len(said.grants)} grants, "
        f"{len(said.leases)} leases of {len(said.sessions)} sessions, "
        f"{sum(said.used.values())} credits used, {said.closing.left} left",
        markup=False,
    )
