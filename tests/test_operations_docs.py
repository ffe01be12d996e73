"""docs/operations.md names what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import aigovtool
from aigovtool.custodian.webhooks import KINDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/operations.md").read_text()
SOURCES = [path.read_text() for path in Path(aigovtool.__file__).parent.rglob("*.py")]


def test_every_metric_is_in_the_table_and_no_other() -> None:
    shown = re.findall(r'"(aigovtool_(?:custodian|enclave)_\w+)"', "\n".join(SOURCES))
    assert len(shown) > 20
    assert sorted(set(shown)) == sorted(re.findall(r"^\| `(aigovtool_\w+)`", PAGE, re.MULTILINE))


def test_every_named_log_line_is_in_the_table_and_no_other() -> None:
    given = re.findall(r'extra=event\(\s*"([a-z_.]+)"', "\n".join(SOURCES))
    assert len(given) > 10
    table = PAGE.partition("## Logs")[2].partition("\n## ")[0]
    assert sorted(set(given)) == sorted(re.findall(r"^\| `([a-z_.]+)`", table, re.MULTILINE))


def test_every_event_of_webhooks_is_in_the_table_and_no_other() -> None:
    table = PAGE.partition("## Webhooks")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"`([a-z_.]+)`", " ".join(rows))) == sorted(KINDS)
