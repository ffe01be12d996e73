"""People's words, as they travel: one line, printable, bounded."""

from __future__ import annotations

MAX_REASON_CHARACTERS = 500


def plain(words: str) -> str:
    """Return *words* as one printable line of at most `MAX_REASON_CHARACTERS`."""
    kept = "".join(each if each.isprintable() else " " for each in words)
    return " ".join(kept.split())[:MAX_REASON_CHARACTERS].rstrip()
