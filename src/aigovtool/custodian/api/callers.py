"""
Who calls the admin API, and what a borrower may do with it.

1. The caller is known by its token: the admin, or a borrower of one loan. Anybody else gets 401.
2. A borrower may call the routes that say so; every other one answers 403, whatever is in it.
3. It is confined to its loan before the endpoint runs: another loan in the path or the query is
   not found, and a query that names none is about its own.
"""

from __future__ import annotations

from concurrent.futures import Executor
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request

from aigovtool.custodian.api.guard import Guard
from aigovtool.custodian.api.http import off_loop, tokens_of
from aigovtool.custodian.borrowers import Borrowers
from aigovtool.custodian.records import Borrower
from aigovtool.errors import NotFoundError, RefusedError
from aigovtool.ids import LoanId


class Callers:
    """Lets the admin in everywhere, and borrowers where they may."""

    def __init__(self, *, guard: Guard, borrowers: Borrowers, pool: Executor) -> None:
        self._guard = guard
        self._borrowers = borrowers
        self._pool = pool

    async def let_in(self, request: Request, *, borrower: bool) -> None:
        """
        Let a request go on to its endpoint.

        Args:
            borrower: whether a borrower may call this route.

        Raises:
            RefusedError: by another name or from another site; or not for a borrower.
            UnauthenticatedError: no token, or nobody's.
            NotFoundError: a borrower asks for what is not its loan's.
        """
        self._guard.check_name(request)
        offered = tokens_of(request)
        request.state.borrower = None
        if self._guard.admits(offered):
            return
        found = await off_loop(self._pool, lambda: self._borrowers.find(offered))
        if not borrower:
            raise RefusedError(
                "a borrower's token reads its loan and asks for more, and nothing else",
                code="borrower.route",
            )
        _confine(request, found.loan)
        request.state.borrower = found


def borrower_of(request: Request) -> Borrower | None:
    """Return which borrower calls, None for the admin."""
    found = request.state.borrower
    assert found is None or isinstance(found, Borrower)
    return found


def _confine(request: Request, loan: LoanId) -> None:
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    named = [value for name, value in pairs if name == "loan"]
    if "loan" in request.path_params:
        named.append(request.path_params["loan"])
    for other in named:
        if other != loan:
            raise NotFoundError(f"there is no loan {other!r}")
    rest = [pair for pair in pairs if pair[0] != "loan"]
    request.scope["query_string"] = urlencode([*rest, ("loan", loan)]).encode("ascii")
