"""
The `manifest.toml` of BlindAI and of the first AIGovTool (2023), read into an SGX alternative.

Its masks are hexadecimal integers (``attributes_flags_hex = "0x4"``), and it took the bit INIT for
granted: FLAGS under the mask had to be ``attributes_flags | INIT``. It accepted the TCB statuses
UpToDate and SWHardeningNeeded, and asked nothing of signer, product, version or platform; the
result says ``any`` for these, in words.
"""

from __future__ import annotations

import tomllib
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from aigovtool.attestation.dcap.policy import SgxPolicy
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.strict import strict_sgx
from aigovtool.errors import ConfigurationError

_FLAG_INIT = 0x01
_Hex = Annotated[str, Meta(pattern="^(0[xX])?[0-9a-fA-F]{1,16}$")]
_NUMBERS = (
    "attributes_flags",
    "attributes_mask_flags",
    "attributes_xfrm",
    "attributes_mask_xfrm",
    "misc_select",
    "misc_mask",
)


class _Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mr_enclave: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    allow_debug: bool
    attributes_flags: _Hex
    attributes_mask_flags: _Hex
    attributes_xfrm: _Hex
    attributes_mask_xfrm: _Hex
    misc_select: _Hex
    misc_mask: _Hex


def import_manifest(text: bytes) -> SgxPolicy:
    """
    Return the alternative that accepts what the original manifest accepted.

    Raises:
        ConfigurationError: not such a manifest.
    """
    try:
        table = tomllib.loads(text.decode())
        for name in _NUMBERS:
            # Both spellings occur: with the suffix in the files, without it in the documentation.
            if f"{name}_hex" in table:
                table[name] = table.pop(f"{name}_hex")
        manifest = msgspec.convert(table, _Manifest)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(
            "not an original manifest.toml",
            code="policy.import",
            expected="mr_enclave, allow_debug and, each with _hex, " + ", ".join(_NUMBERS),
            came=str(error),
        ) from None
    flags = int(manifest.attributes_flags, 16) | _FLAG_INIT
    return replace(
        strict_sgx(),
        mr_enclave=(manifest.mr_enclave.lower(),),
        debug=manifest.allow_debug,
        attributes_flags=flags.to_bytes(8, "little").hex(),
        attributes_mask_flags=_little_endian(manifest.attributes_mask_flags, 8),
        attributes_xfrm=_little_endian(manifest.attributes_xfrm, 8),
        attributes_mask_xfrm=_little_endian(manifest.attributes_mask_xfrm, 8),
        misc_select=_little_endian(manifest.misc_select, 4),
        misc_mask=_little_endian(manifest.misc_mask, 4),
        tcb_statuses=(TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED),
    )


def _little_endian(hexadecimal: str, size: int) -> str:
    """Write an integer as it stands in the report; raises ConfigurationError when it is too big."""
    try:
        return int(hexadecimal, 16).to_bytes(size, "little").hex()
    except OverflowError:
        raise ConfigurationError(
            "a mask of the original manifest is too long",
            code="policy.import",
            expected=f"{size} bytes",
            came=hexadecimal,
        ) from None
