"""Where an enclave listens, as people write it: ``HOST`` or ``HOST:PORT``, IPv6 in brackets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from aigovtool.errors import ConfigurationError

DEFAULT_ENCLAVE_PORT = 9924

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """
    Args:
        host: a DNS name or an IP address, IPv6 without brackets.
        port: 1 to 65535, or 0 where one may listen on any.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, default_port: int = DEFAULT_ENCLAVE_PORT) -> Address:
    """
    Read ``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``.

    Raises:
        ConfigurationError: none of these; a URL is refused too, for there is one way to connect.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        valid = bool(bracket) and _is_ipv6(host) and (not rest or rest.startswith(":"))
        port_text = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(":")
        valid = _NAME.fullmatch(host) is not None
        port_text = rest if colon else None
    port = default_port if port_text is None else _port(port_text)
    if not valid or port is None:
        raise ConfigurationError(
            "not an address",
            expected=f"HOST or HOST:PORT, such as enclave.example:{DEFAULT_ENCLAVE_PORT}",
            came=repr(text[:100]),
        )
    return Address(host=host, port=port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        return None
    return int(text)
