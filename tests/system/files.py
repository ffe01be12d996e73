"""Every file of a stage, read while its processes stand still: none comes or goes meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

from aigovtool.demo.stage import Stage


def files_of(stage: Stage) -> dict[Path, bytes]:
    running = [process for process in stage.processes if process.alive()]
    for process in running:
        process.popen.send_signal(signal.SIGSTOP)
    try:
        return {path: path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()}
    finally:
        for process in running:
            process.popen.send_signal(signal.SIGCONT)
