"""What is installed on demand, and how to say that it is not."""

from __future__ import annotations

from importlib.util import find_spec

from aigovtool.errors import ConfigurationError


def require_grpc() -> None:
    """Raise ConfigurationError unless the extra ``grpc`` is installed."""
    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise ConfigurationError(
            "gRPC is not installed",
            expected="the extra `grpc`",
            mend="pip install 'aigovtool[grpc]'",
        )
