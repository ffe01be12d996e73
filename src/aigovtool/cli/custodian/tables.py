"""What the custodian's commands show to people: tables, and the live one of ``watch``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aigovtool.cli.output import SIMULATED
from aigovtool.custodian.api import views
from aigovtool.custodian.reconciling import Reconciled

SHORT_CELL = 20  # characters: a time, or the name of an event

_STATES = {
    "active": "green",
    "live": "green",
    "approved": "green",
    "settled": "green",
    "open": "yellow",
    "lapsed": "yellow",
    "stopped": "red",
    "expired": "red",
    "closed": "red",
    "denied": "red",
    "forfeited": "red",
}


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    one_line: bool = False,
) -> Table:
    """
    Return a plain table; numbers are set right, states coloured.

    Long cells are folded, so that nothing is lost, or with *one_line* cut. On a narrow terminal
    the longest give way first: no heading is broken within a word, no short cell cut.
    """
    made = Table(
        title=title or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    numbers = {
        index
        for index in range(len(columns))
        if rows and all(isinstance(row[index], int | float) for row in rows)
    }
    cells = [[_cell(value) for value in row] for row in rows]
    for index, column in enumerate(columns):
        widths = [len(word) for word in column.split()]
        if one_line:
            widths += [len(row[index]) for row in cells if len(row[index]) <= SHORT_CELL]
        made.add_column(
            column,
            justify="right" if index in numbers else "left",
            overflow="ellipsis" if one_line else "fold",
            no_wrap=one_line,
            min_width=max(widths, default=None),
        )
    for row in cells:
        made.add_row(*row)
    return made


def _cell(value: object) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, datetime):
        return Text(value.astimezone().strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, float):
        return Text(f"{value:.1f}")
    return Text(str(value), style=_STATES.get(str(value), ""))


def worst_case(exposure: views.ExposureView) -> str:
    """Say what can still be used if the loan is stopped now."""
    return (
        f"if you stop now, at most {exposure.credits} inferences and {exposure.seconds:.1f} s "
        "can still be used"
    )


def loans(found: Sequence[views.LoanView]) -> Table:
    return table(
        "",
        ["loan", "name", "state", "left", "leased", "spent", "forfeited", "granted", "enclaves",
         "worst case"],
        [
            [one.loan, one.name, one.state, one.account.left, one.account.leased,
             one.account.spent, one.account.forfeited, one.account.granted, one.enclaves,
             f"{one.exposure.credits} in {one.exposure.seconds:.1f} s"]
            for one in found
        ],
    )  # fmt: skip


def model_terms(terms: views.TermsView) -> str:
    """Say what tokens cost and what is limited of a model's answers, where it is not the usual."""
    price = terms.token_price
    words = []
    if (price.input, price.output) != (1, 1):
        words.append(f"{price.input} credits a token of input, {price.output} of output")
    if terms.shared_prefixes:
        words.append("prompts' prefixes are shared between consumers")
    words += [
        f"{name.replace('_', ' ')} {value}"
        for name, value in msgspec.structs.asdict(terms.extraction).items()
        if value is not None
    ]
    return "; ".join(words)


def models(found: Sequence[views.ModelView]) -> Table:
    return table(
        "",
        ["model", "name", "version", "sealed bytes", "context", "created"],
        [
            [one.model, one.name, one.version, one.body_bytes, one.context, one.created]
            for one in found
        ],
    )


def consumers(found: Sequence[views.ConsumerView]) -> Table:
    return table(
        "",
        ["consumer", "name", "loan", "blocked", "used", "own budget left", "terms", "reason"],
        [
            [
                one.consumer,
                one.name,
                one.loan,
                one.blocked,
                one.used,
                None if one.account is None else one.account.left,
                _terms(one),
                one.blocked_reason,
            ]
            for one in found
        ],
    )


def _terms(one: views.ConsumerView) -> str:
    """Say what is agreed with a consumer beside its budget."""
    words = []
    if one.period is not None:
        words.append(f"{one.period.budget} per {one.period.unit}")
    if one.rate is not None:
        words.append(one.rate)
    if one.concurrency is not None:
        words.append(f"{one.concurrency} at one time")
    if one.expires is not None:
        words.append(f"until {one.expires:%Y-%m-%d %H:%MZ}")
    return ", ".join(words)


def _tcb(one: views.TcbView) -> str:
    """Say how a platform stands: what is short and until when, if anything is."""
    words = [one.status or "-"]
    if one.window_ends is not None:
        words[0] += f" ({one.step}) until {one.window_ends:%Y-%m-%d %H:%MZ}"
        words += one.short[:1]
        if len(one.short) > 1:
            words.append(f"and {len(one.short) - 1} more")
    if one.reattestation_overdue:
        words.append("no fresh evidence, no leases")
    return "; ".join(words)


def sessions(found: Sequence[views.SessionView]) -> Table:
    return table(
        "",
        [
            "session",
            "state",
            "connected",
            "tee",
            "tcb",
            "measurement",
            "opened",
            "reports",
            "ended why",
        ],
        [
            [
                one.session,
                one.state,
                one.connected,
                f"{one.tee} (protects nothing)" if one.simulated else one.tee,
                _tcb(one.tcb),
                one.measurement[:16] + "…",
                one.opened,
                one.reports,
                one.end_reason,
            ]
            for one in found
        ],
    )


def leases(found: Sequence[views.LeaseView]) -> Table:
    return table(
        "",
        ["lease", "session", "state", "credits", "used", "granted", "expires", "refunded"],
        [
            [
                one.lease,
                one.session,
                one.state,
                one.credits,
                one.used,
                one.granted,
                one.expires,
                one.refunded,
            ]
            for one in found
        ],
    )


def requests(found: Sequence[views.RequestView]) -> Table:
    return table(
        "",
        ["request", "consumer", "state", "waiting", "credits", "granted", "reason", "decision"],
        [
            [
                one.request,
                one.consumer or "the borrower",
                one.state,
                _waiting(one) if one.decided is None else "",
                one.credits,
                one.granted,
                one.reason,
                one.decision_reason,
            ]
            for one in found
        ],
    )


def _waiting(one: views.RequestView) -> str:
    """Say how many queries wait for a request, and since when."""
    if one.waiting_since is None:
        return "none"
    return f"{one.waiting} since {one.waiting_since:%Y-%m-%d %H:%M:%S}"


def borrowers(found: Sequence[views.BorrowerView]) -> Table:
    return table(
        "",
        ["token", "loan", "note", "made", "revoked"],
        [[one.borrower, one.loan, one.note, one.created, one.revoked] for one in found],
    )


def webhooks(found: Sequence[views.WebhookView]) -> Table:
    return table(
        "",
        ["webhook", "address", "events", "waiting", "delivered", "dead", "last answer"],
        [
            [
                one.webhook,
                one.url,
                ", ".join(one.events),
                one.waiting,
                one.delivered,
                one.dead,
                one.last_answer,
            ]
            for one in found
        ],
    )


def events(found: Sequence[views.EventView]) -> Table:
    return table(
        "",
        ["number", "time", "kind", *_EVENT_TEXTS],
        [[one.number, one.time, one.kind, *_event_texts(one)] for one in found],
    )


_EVENT_TEXTS = ("actor", "about", "detail")


def _event_texts(one: views.EventView) -> tuple[str | None, ...]:
    return one.actor, one.lease or one.consumer or one.session or one.loan, _detail(one)


def _newest(found: Sequence[views.EventView]) -> Table:
    """Events of these minutes, a line each."""
    return table(
        "",
        ["time", "kind", *_EVENT_TEXTS],
        [[f"{one.time.astimezone():%H:%M:%S}", one.kind, *_event_texts(one)] for one in found],
        one_line=True,
    )


def _detail(event: views.EventView) -> str:
    if event.kind == "appraisal.refused":
        return "; ".join(
            f"{reason.get('code')}: {reason.get('message')}" for reason in event.detail["reasons"]
        )
    # the token is long, and says the same: `session ear` and --json give it
    shown = {name: value for name, value in event.detail.items() if value and name != "ear"}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def consumption(found: Sequence[views.ConsumptionView]) -> RenderableType:
    parts: list[RenderableType] = []
    for one in found:
        account = one.account
        parts += [
            Text.assemble(
                (one.name, "bold"),
                f"  {one.loan}  ",
                (one.state, _STATES.get(one.state, "")),
                f"  left {account.left} of {account.granted}, leased {account.leased}, "
                f"spent {account.spent}, forfeited {account.forfeited}",
            ),
            Text(worst_case(one.exposure)),
            consumers(one.consumers),
        ]
    return Group(*parts)


def snapshot(now: views.Snapshot) -> RenderableType:
    """The live table of ``watch``."""
    rows = [
        [
            one.name,
            one.state,
            now.enclaves.get(one.loan, 0),
            one.account.left,
            one.account.leased,
            one.account.spent,
            one.account.forfeited,
            one.account.granted,
            f"{one.exposure.credits} in {one.exposure.seconds:.1f} s",
        ]
        for one in now.loans
    ]
    parts: list[RenderableType] = []
    if now.simulated:
        parts.append(Text(f" {SIMULATED} ", style="black on yellow"))
    parts += [
        table(
            f"AIGovTool custodian  {now.time.astimezone():%H:%M:%S}",
            [
                "loan",
                "state",
                "enclaves",
                "left",
                "leased",
                "spent",
                "forfeited",
                "granted",
                "if stopped",
            ],
            rows,
        )
    ]
    users = [
        [loan.name, one.name, one.used, None if one.account is None else one.account.left,
         "blocked" if one.blocked else ""]
        for loan in now.loans
        for one in loan.consumers
    ]  # fmt: skip
    if users:
        parts.append(table("", ["loan", "consumer", "used", "own budget left", ""], users))
    if now.requests:
        parts += [Text("requests for more", style="bold yellow"), requests(now.requests)]
    parts.append(_newest(now.events))
    return Group(*parts)


def reconciled(done: Reconciled) -> RenderableType:
    """What a reconciliation did or would do, account by account."""
    mark = "vouches for what was left" if done.vouched else "does not vouch: all that was left goes"
    lines: list[RenderableType] = [
        Text(("reconciled: " if done.applied else "held: ") + done.reason),
        Text(
            f"mark {mark}; {done.handed_in} settlements handed in, "
            f"{done.receipts_refused} receipts refused, {done.sessions_ended} sessions end"
        ),
        table(
            "accounts",
            [
                "account", "name", "granted", "left", "left by mark", "shown used",
                "granted again", "open, charged", "charged", "as", "left now", "state",
            ],
            [
                [
                    one.account,
                    one.name,
                    one.ledger_granted,
                    one.ledger_left,
                    "unknown" if one.mark_left is None else one.mark_left,
                    one.shown,
                    one.granted_again,
                    one.open_charged,
                    one.charged,
                    one.charged_as,
                    one.left,
                    one.state,
                ]
                for one in done.accounts
            ],
        ),
    ]  # fmt: skip
    if done.lost:
        lines.append(Text("made after the copy, and lost: " + ", ".join(done.lost)))
    return Group(*lines)
