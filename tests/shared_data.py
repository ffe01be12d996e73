"""Where recorded evidence and published vectors are, or a skip that says where they should be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("AIGOVTOOL_VECTORS") or Path(__file__).parents[2] / "shared")


def shared(*parts: str) -> Path:
    """Return a path below the shared folder; skip the test or module when it is not there."""
    path = ROOT.joinpath(*parts)
    if not path.exists():
        pytest.skip(
            f"no test vectors at {ROOT} (set AIGOVTOOL_VECTORS to their folder)",
            allow_module_level=True,
        )
    return path
