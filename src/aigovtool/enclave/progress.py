"""How loading goes on, for people: a bar on a terminal, a log line for each step elsewhere."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_log = logging.getLogger(__name__)


class LoggedProgress:
    """A log line for each step."""

    def begin(self, what: str, total_bytes: int) -> None:
        """See `loader.Progress`."""
        _log.info("%s, %.1f MB", what, total_bytes / 1e6)

    def at(self, done_bytes: int) -> None:
        """See `loader.Progress`."""

    def end(self) -> None:
        """See `loader.Progress`."""


class BarProgress:
    """A bar for each step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None

    def begin(self, what: str, total_bytes: int) -> None:
        """See `loader.Progress`."""
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
        self._bars.add_task(what, total=total_bytes)

    def at(self, done_bytes: int) -> None:
        """See `loader.Progress`."""
        if self._bars is not None and self._bars.tasks:
            self._bars.update(self._bars.tasks[-1].id, completed=done_bytes)

    def end(self) -> None:
        """See `loader.Progress`."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
