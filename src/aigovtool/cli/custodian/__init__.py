"""``aigovtool custodian``: lend models: serve, grant, watch, block, stop."""

from __future__ import annotations

from aigovtool.cli.custodian import (
    accounting,
    audit,
    credits,
    keeping,
    lending,
    log,
    looking,
    serving,
    webhooks,
)
from aigovtool.cli.custodian.group import custodian

__all__ = [
    "accounting",
    "audit",
    "credits",
    "custodian",
    "keeping",
    "lending",
    "log",
    "looking",
    "serving",
    "webhooks",
]
