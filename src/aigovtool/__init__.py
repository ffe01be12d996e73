"""AIGovTool: lend a model without handing it over."""

from __future__ import annotations

__version__ = "0.1.0"
