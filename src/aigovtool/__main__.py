"""``python -m aigovtool`` is the command ``aigovtool``."""

from __future__ import annotations

from aigovtool.cli import main

main()
