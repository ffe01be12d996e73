"""
Every way to fail, on one screen.

The tree is cut by what the caller does next, not by where the error arose:

- `MalformedError`      the bytes cannot be read: do not retry, fix the sender
- `VerificationError`   the bytes are readable and not genuine: treat as an attack
- `RefusedError`        genuine, and the rules say no: change what is asked, or the rules
- `UnavailableError`    cannot be answered now: retry after `retry_after_s`
- `ConflictError`       somebody else was first, or it was done already: look again, then decide
- `ConfigurationError`  the operator's own files, flags or machine are wrong: fix them
- `PromiseBrokenError`  this program broke one of its own promises: report it

No exception of another library leaves a parser, and no message carries a payload, key or token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """
    One reason of a refusal.

    Args:
        code: stable, dotted, machine-readable, such as ``tdx.mr_td`` or ``budget.exhausted``.
        message: one lower-case sentence without a full stop.
        expected: what would have been accepted; digests in hex.
        came: what was found instead.
        mend: what would mend it, and who can do so.
    """

    code: str
    message: str
    expected: str | None = None
    came: str | None = None
    mend: str | None = None

    def __str__(self) -> str:
        text = self.message
        if self.expected is not None:
            text += f"; expected {self.expected}"
        if self.came is not None:
            text += f"; came {self.came}"
        if self.mend is not None:
            text += f"; to mend: {self.mend}"
        return text


class AIGovToolError(Exception):
    """
    Root of the tree. Carries one or more reasons; the first one speaks for all.

    Args:
        reason: a reason, or a message that becomes one.
        code: code of that reason when only a message is given.
        others: further reasons, when a check found several.
    """

    code = "error"

    def __init__(
        self,
        reason: Reason | str,
        *,
        code: str | None = None,
        expected: str | None = None,
        came: str | None = None,
        mend: str | None = None,
        others: Sequence[Reason] = (),
    ) -> None:
        if isinstance(reason, str):
            reason = Reason(
                code=code or type(self).code,
                message=reason,
                expected=expected,
                came=came,
                mend=mend,
            )
        self.reasons: tuple[Reason, ...] = (reason, *others)
        super().__init__(reason.message)

    def __str__(self) -> str:
        return "; and ".join(str(reason) for reason in self.reasons)


class MalformedError(AIGovToolError):
    """The bytes cannot be read as what they claim to be."""

    code = "malformed"


class TooLargeError(MalformedError):
    """Larger than a named limit; nothing past the limit was read."""

    code = "too_large"


class VerificationError(AIGovToolError):
    """A signature, digest, chain or binding does not hold."""

    code = "untrue"


class RefusedError(AIGovToolError):
    """Readable and genuine, and the rules say no."""

    code = "refused"


class AppraisalError(RefusedError):
    """Genuine evidence that the appraisal policy does not accept; lists every reason."""

    code = "appraisal"


class UnauthenticatedError(RefusedError):
    """No credential, or one that nobody here issued."""

    code = "unauthenticated"


class BlockedError(RefusedError):
    """The consumer is known and blocked."""

    code = "blocked"


class NotFoundError(RefusedError):
    """There is no such thing here, or not for this caller."""

    code = "not_found"


class BadTensorError(RefusedError):
    """A tensor does not fit the model's signature."""

    code = "bad_tensor"


class BadPromptError(RefusedError):
    """
    A request that a language model cannot answer.

    Args:
        param: the parameter of the request that is wrong, in OpenAI's words.
    """

    code = "bad_prompt"

    def __init__(
        self,
        reason: Reason | str,
        *,
        code: str | None = None,
        expected: str | None = None,
        came: str | None = None,
        mend: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(reason, code=code, expected=expected, came=came, mend=mend)
        self.param = param


class KeyReusedError(RefusedError):
    """An Idempotency-Key that stood for another query."""

    code = "idempotency.other"


class BudgetExhaustedError(RefusedError):
    """No credit is left; a grant would mend it."""

    code = "budget.exhausted"

    def __init__(
        self,
        reason: Reason | str,
        *,
        retry_after_s: float = 5.0,
        mend: str | None = None,
        place: tuple[int, int] | None = None,
    ) -> None:
        came = None if place is None else f"place {place[0]} of {place[1]} that wait"
        super().__init__(reason, came=came, mend=mend)
        self.retry_after_s = retry_after_s
        self.place = place  # the query's among those that wait, from 1, and how many these are


class MoreDeniedError(BudgetExhaustedError):
    """The custodian was asked for more and said no: waiting on would not help."""

    code = "budget.denied"


class UnavailableError(AIGovToolError):
    """Cannot be answered now; the same request may succeed later."""

    code = "unavailable"

    def __init__(
        self,
        reason: Reason | str,
        *,
        code: str | None = None,
        came: str | None = None,
        mend: str | None = None,
        retry_after_s: float = 5.0,
    ) -> None:
        super().__init__(reason, code=code, came=came, mend=mend)
        self.retry_after_s = retry_after_s


class LimitedError(UnavailableError):
    """Too fast, or too many at once (`limit.rate`, `limit.concurrency`); credits may be left."""

    code = "limit"


class LoanNotActiveError(UnavailableError):
    """The loan is stopped, expired or closed."""

    code = "loan.not_active"


class ConflictError(AIGovToolError):
    """The state changed under the caller, or the thing exists already."""

    code = "conflict"


class ConfigurationError(AIGovToolError):
    """The operator's configuration, files or machine do not allow this."""

    code = "configuration"


class PromiseBrokenError(AIGovToolError):
    """An invariant of this program does not hold; nothing was changed."""

    code = "promise_broken"
