"""How findings are told: each with its name, its subject, and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING

from rich.text import Text

from aigovtool.cli.output import result

if TYPE_CHECKING:
    from aigovtool.proof.findings import Finding


def tell(findings: Iterable[Finding]) -> None:
    """Print findings for people; what they quote may be anybody's words."""
    for finding in findings:
        head = Text(f"{finding.code}: ", style="bold red")
        result.print(head + plain(f"{finding.subject}: {finding.message}"))
        for name, text in (("expected", finding.expected), ("came", finding.came)):
            if text is not None:
                result.print(Text(f"{name:>11}: ", style="dim") + plain(text))


def count_of(findings: Sized) -> str:
    """Return how many there are, in words."""
    return "1 finding" if len(findings) == 1 else f"{len(findings)} findings"


def plain(text: str) -> Text:
    """Return *text* as it may reach a terminal: no markup, no control sequence."""
    return Text("".join(c if c.isprintable() else "\ufffd" for c in text), style="default")
