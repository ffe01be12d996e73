"""
The count, on the custodian's side (I1): one account of credits, and the moves between its parts.

Rule 1: ``granted = left + leased + spent + forfeited``, and none of them is ever negative.
Rule 2: only `grant` makes credits and only `withdraw` takes any out of the account, which then were
        not used and never will be; every other move only shifts them.
Rule 3: a lease counts as used from the moment it is granted, until a signed settlement says less.
Rule 4: what was forfeited stays forfeited until the same session settles it. A refund is a new
        grant: the enclave that fell silent may have used every credit of its lease, so handing
        the same credits out again would let more be served than was ever granted.

The same account serves a loan and a consumer's own budget. Pure: no clock, no store.
"""

from __future__ import annotations

from dataclasses import dataclass

from aigovtool.errors import BudgetExhaustedError, MalformedError, PromiseBrokenError

MAX_CREDITS = 1 << 53  # every sum stays exact in a 64-bit database and in a JSON reader's double


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """
    Credits by what has become of them.

    Args:
        granted: all that were ever granted, refunds included, less what was withdrawn.
        left: neither leased nor used.
        leased: in leases that are not settled yet.
        spent: used, as signed settlements say.
        forfeited: in leases whose session fell silent, charged whole.
    """

    granted: int = 0
    left: int = 0
    leased: int = 0
    spent: int = 0
    forfeited: int = 0

    def __post_init__(self) -> None:
        parts = (self.left, self.leased, self.spent, self.forfeited)
        if min(parts) < 0 or sum(parts) != self.granted or self.granted > MAX_CREDITS:
            raise PromiseBrokenError("an account does not add up", came=repr(self))


def grant(account: Account, credits: int) -> Account:
    """
    Add *credits*.

    Raises:
        MalformedError: fewer than one, or more than an account can hold.
    """
    _positive(credits)
    if account.granted + credits > MAX_CREDITS:
        raise MalformedError(
            "an account cannot hold so many credits",
            code="budget.too_large",
            expected=f"at most {MAX_CREDITS - account.granted} more",
            came=str(credits),
        )
    return Account(
        granted=account.granted + credits,
        left=account.left + credits,
        leased=account.leased,
        spent=account.spent,
        forfeited=account.forfeited,
    )


def withdraw(account: Account, credits: int) -> Account:
    """
    Take *credits* back that are neither leased nor used.

    Raises:
        BudgetExhaustedError: more than are left.
    """
    if not 0 <= credits <= account.left:
        raise BudgetExhaustedError(
            f"{credits} credits were to be withdrawn and {account.left} are left"
        )
    return Account(
        granted=account.granted - credits,
        left=account.left - credits,
        leased=account.leased,
        spent=account.spent,
        forfeited=account.forfeited,
    )


def lease(account: Account, credits: int) -> Account:
    """
    Set *credits* aside for one lease.

    Raises:
        MalformedError: fewer than one.
        BudgetExhaustedError: more than are left.
    """
    _positive(credits)
    if credits > account.left:
        raise BudgetExhaustedError(
            f"{credits} credits were asked for and {account.left} are left",
            mend="the custodian grants more",
        )
    return Account(
        granted=account.granted,
        left=account.left - credits,
        leased=account.leased + credits,
        spent=account.spent,
        forfeited=account.forfeited,
    )


def settle(account: Account, credits: int, used: int) -> Account:
    """
    Close a lease of *credits* of which *used* were used; the rest is left again.

    Raises:
        MalformedError: *used* is negative or more than the lease held.
    """
    _within(used, credits)
    return Account(
        granted=account.granted,
        left=account.left + credits - used,
        leased=account.leased - credits,
        spent=account.spent + used,
        forfeited=account.forfeited,
    )


def forfeit(account: Account, credits: int) -> Account:
    """Charge a silent session's lease of *credits* whole."""
    return Account(
        granted=account.granted,
        left=account.left,
        leased=account.leased - credits,
        spent=account.spent,
        forfeited=account.forfeited + credits,
    )


def settle_late(account: Account, credits: int, used: int, *, refunded: bool) -> Account:
    """
    Settle a forfeited lease after all.

    Args:
        refunded: the lease was refunded meanwhile, or written off after a rollback of the ledger,
            so its unused credits do not come back again.

    Raises:
        MalformedError: *used* is negative or more than the lease held.
    """
    _within(used, credits)
    back = 0 if refunded else credits - used
    return Account(
        granted=account.granted,
        left=account.left + back,
        leased=account.leased,
        spent=account.spent + used,
        forfeited=account.forfeited - used - back,
    )


def block(want: int, left: int, sharers: int, limit: int, at_least: int = 1) -> int:
    """
    Return how many credits a session that wants *want* is leased now; 0 when nothing is left.

    A session gets at most its half share of what is left, so that several sessions find some and
    leases shrink to single credits as the end comes near.

    Args:
        sharers: sessions that hold leases of what is left, this one included.
        limit: the most that one lease may hold.
        at_least: the price of one query; a share that could not pay for it is raised to it, and
            what is left is leased as ever when that could not.
    """
    share = max(1, -(-left // (2 * max(1, sharers))))
    if at_least <= left:
        share = max(share, at_least)
    return max(0, min(want, share, limit, left))


def _positive(credits: int) -> None:
    if credits < 1:
        raise MalformedError(
            "a number of credits must be positive", expected="at least 1", came=str(credits)
        )


def _within(used: int, credits: int) -> None:
    if not 0 <= used <= credits:
        raise MalformedError(
            "a settlement does not fit its lease",
            code="settlement.size",
            expected=f"0 to {credits} credits used",
            came=str(used),
        )
