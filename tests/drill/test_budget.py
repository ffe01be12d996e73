"""Many queries at once against few credits over several real enclaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.budget_exact import run

pytestmark = pytest.mark.xdist_group("drill")


@pytest.mark.slow
def test_1000_queries_at_once_against_100_credits_over_four_enclaves_serve_exactly_100(
    tmp_path: Path,
) -> None:
    """`python -m benchmarks.budget_exact` asks 10,000 against 1,000."""
    counts = run(tmp_path / "stage", queries=1000, credits=100, enclaves=4)
    assert (counts["served"], counts["spent"], counts["left"]) == (100, 100, 0), counts
