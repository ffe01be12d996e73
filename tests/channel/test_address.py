"""Addresses as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.channel.address import Address, parse_address
from aigovtool.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", 9924),
        ("enclave.example:443", "enclave.example", 443),
        ("10.0.0.1", "10.0.0.1", 9924),
        ("[::1]", "::1", 9924),
        ("[2001:db8::1]:7", "2001:db8::1", 7),
        ("a_b-c.example:0", "a_b-c.example", 0),
    ],
)
def test_read(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host=host, port=port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":9924", "host:", "host:x", "host:65536", "host:+1", "host:٣", "::1", "[::1", "[::1]x",
     "[host]:1", "https://host", "host/path", "user@host", "host\r\nX: y", "ho st", "-host",
     "a" * 300, "host:1:2"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


@given(st.text(max_size=40))
def test_whatever_is_accepted_can_stand_in_a_request_head(text: str) -> None:
    try:
        written = str(parse_address(text))
    except ConfigurationError:
        return
    assert written.isascii()
    assert written.isprintable()
    assert " " not in written
