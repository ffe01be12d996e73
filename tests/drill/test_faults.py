"""
The fault campaign in small, of one seed: `make faults` plays 200 kills and more.

Kills, partitions and pauses of real processes, then the consumers' receipts against the ledger.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("drill")


@pytest.mark.slow
def test_after_eight_faults_what_was_served_reconciles_with_the_ledger(tmp_path: Path) -> None:
    output = tmp_path / "counts.json"
    played = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.faults", "--kills", "5", "--seed", "4",
            "--enclaves", "2", "--consumers", "2", "--limit", "60",
            "--keep", str(tmp_path / "stage"), "--output", str(output),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr[-3000:]
    counts = json.loads(output.read_text())
    assert counts["wrong"] == []
    assert 0 < counts["served"] <= counts["granted"]
    assert counts["faults"]["kills"] == 5
