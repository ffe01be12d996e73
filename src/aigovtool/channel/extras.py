"""What is installed on demand, and how to say that it is not."""

from __future__ import annotations

import os
from importlib.util import find_spec

from aigovtool.errors import ConfigurationError


def prepare_grpc() -> None:
    """
    Make ready to import grpcio, which then writes nothing to stderr by itself.

    Its lines are neither of our format nor bounded: one for each failed handshake.

    Raises:
        ConfigurationError: the extra ``grpc`` is not installed.
    """
    if find_spec("grpc") is None or find_spec("google.protobuf") is None:
        raise ConfigurationError(
            "gRPC is not installed",
            expected="the extra `grpc`",
            mend="pip install 'aigovtool[grpc]'",
        )
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
