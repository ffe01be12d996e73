"""
AIGovTool: lend a model without handing it over.

The SDK is `connect` and `connect_async`; all else is in the packages below.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aigovtool.client.blocking import connect
    from aigovtool.client.session import connect_async

__version__ = "0.1.0"
__all__ = ["__version__", "connect", "connect_async"]


def __getattr__(name: str) -> Any:
    # the command line and the servers import this package too, and need neither (PEP 562)
    if name == "connect":
        from aigovtool.client.blocking import connect  # noqa: PLC0415

        return connect
    if name == "connect_async":
        from aigovtool.client.session import connect_async  # noqa: PLC0415

        return connect_async
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
