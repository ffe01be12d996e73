"""What a check found wrong, named so that whoever is shown it can look for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aigovtool.errors import AIGovToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing that does not hold.

    Args:
        code: stable, dotted, such as ``receipt.gap``.
        subject: the receipt, lease, session or file that it is about.
        message: one lower-case sentence without a full stop.
        expected, came: what would have been in order, and what was found.
    """

    code: str
    subject: str
    message: str
    expected: str | None = None
    came: str | None = None


class Findings:
    """Collects findings, the first of each kind and subject first."""

    def __init__(self) -> None:
        self._found: list[Finding] = []

    def add(
        self,
        code: str,
        subject: str,
        message: str,
        *,
        expected: object = None,
        came: object = None,
    ) -> None:
        """Note what does not hold."""
        self._found.append(
            Finding(
                code=code,
                subject=subject,
                message=message,
                expected=None if expected is None else str(expected),
                came=None if came is None else str(came),
            )
        )

    @contextmanager
    def noted(self, code: str, subject: str) -> Iterator[None]:
        """Note every reason of an error, under *code*, and go on after the block."""
        try:
            yield
        except AIGovToolError as error:
            for reason in error.reasons:
                self.add(
                    code,
                    subject,
                    f"{reason.message} ({reason.code})",
                    expected=reason.expected,
                    came=reason.came,
                )

    def __len__(self) -> int:
        return len(self._found)

    def all(self) -> tuple[Finding, ...]:
        """Return what was found."""
        return tuple(self._found)
