"""
Are the claims of an SEV-SNP report acceptable? Policy and claims in; every reason against out.

No field has a default: what is not stated is an error when the file is read, and whoever does not
care about something writes "any". Debug is the exception nobody should make: see `SnpPolicy.debug`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.product import Product, Tcb
from aigovtool.errors import Reason

AnyValue = Literal["any"]
Hex16 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Hex32 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Hex48 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{96}$")]
Hex64 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]
Svn = Annotated[int, msgspec.Meta(ge=0, le=255)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
MitigationBits = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class TcbMinimum(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The lowest acceptable security version of each component of one product line.

    Args:
        fmc: 0 for Milan and Genoa, which do not have it.
    """

    fmc: Svn
    boot_loader: Svn
    tee: Svn
    snp: Svn
    microcode: Svn


TcbMinima = Mapping[Product, TcbMinimum] | AnyValue


class SnpPolicy(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="tee",
    tag="snp",
):
    """
    What an SEV-SNP guest must be; digests are lower-case hex, lists are alternatives.

    Args:
        product: product lines.
        measurement: launch digests, 48 bytes each.
        host_data: what the host put there at launch, 32 bytes each.
        id_key_digest: SHA-384 of the key that signed the ID block.
        author_key_digest: SHA-384 of the key that signed the ID key.
        family_id: of the ID block, 16 bytes each.
        image_id: of the ID block, 16 bytes each.
        guest_svn_min: of the ID block.
        vmpl: privilege levels from which the report may have been asked for.
        debug: ``any`` accepts guests whose memory the host can read: nothing is then protected.
        smt: whether the guest may share a core's threads with others.
        migration_agent: whether an agent chosen by the host may move the guest.
        single_socket: whether the guest must stay on one socket.
        cxl: whether CXL devices may be there.
        aes_256_xts: whether the guest must ask for memory encryption with 256-bit keys.
        page_swap: whether the host may swap and move the guest's pages.
        abi_min: ``[major, minor]`` that the guest policy must demand of the firmware.
        host_smt: whether SMT may be on in the host.
        ecc: whether the memory must be error correcting.
        rapl: whether power readings may be on (a side channel).
        ciphertext_hiding: whether the host must be kept from reading ciphertext.
        alias_check: whether the firmware must have checked for aliased memory (BadRAM).
        reported_tcb_min: by product line; also what old VCEKs are refused by.
        current_tcb_min: by product line.
        committed_tcb_min: by product line; below this the firmware cannot be rolled back.
        launch_tcb_min: by product line.
        provisional_firmware: whether the running firmware may be other than the committed one.
        mitigations: bits that must be set both at launch and now.
        signing_key: kinds of key, ``vcek`` or ``vlek``.
        chip_id: pinned chips, 64 bytes each (on Turin 8 and zeros).
        csp_id: clouds whose VLEK is accepted; does not concern reports signed by a VCEK.
        revocation: ``checked`` demands a current CRL.
    """

    product: list[Product] | AnyValue
    measurement: list[Hex48] | AnyValue
    host_data: list[Hex32] | AnyValue
    id_key_digest: list[Hex48] | AnyValue
    author_key_digest: list[Hex48] | AnyValue
    family_id: list[Hex16] | AnyValue
    image_id: list[Hex16] | AnyValue
    guest_svn_min: U32 | AnyValue
    vmpl: list[Annotated[int, msgspec.Meta(ge=0, le=3)]] | AnyValue
    debug: Literal["forbidden", "any"]
    smt: Literal["forbidden", "any"]
    migration_agent: Literal["forbidden", "any"]
    single_socket: Literal["required", "any"]
    cxl: Literal["forbidden", "any"]
    aes_256_xts: Literal["required", "any"]
    page_swap: Literal["forbidden", "any"]
    abi_min: tuple[Svn, Svn] | AnyValue
    host_smt: Literal["forbidden", "any"]
    ecc: Literal["required", "any"]
    rapl: Literal["forbidden", "any"]
    ciphertext_hiding: Literal["required", "any"]
    alias_check: Literal["required", "any"]
    reported_tcb_min: dict[Product, TcbMinimum] | AnyValue
    current_tcb_min: dict[Product, TcbMinimum] | AnyValue
    committed_tcb_min: dict[Product, TcbMinimum] | AnyValue
    launch_tcb_min: dict[Product, TcbMinimum] | AnyValue
    provisional_firmware: Literal["forbidden", "any"]
    mitigations: MitigationBits | AnyValue
    signing_key: list[Literal["vcek", "vlek"]] | AnyValue
    chip_id: list[Hex64] | AnyValue
    csp_id: list[str] | AnyValue
    revocation: Literal["checked", "any"]


def appraise(claims: SnpClaims, policy: SnpPolicy) -> list[Reason]:
    """Return every reason why *claims* do not satisfy *policy*; none means acceptable."""
    guest, platform = claims.guest_policy, claims.platform_info
    flags = (
        # (field, how it is, what the policy says of it, who mends it)
        ("debug", guest.debug, policy.debug, _RELAUNCH),
        ("smt", guest.smt, policy.smt, _RELAUNCH),
        ("migration_agent", guest.migrate_ma, policy.migration_agent, _RELAUNCH),
        ("single_socket", guest.single_socket, policy.single_socket, _RELAUNCH),
        ("cxl", guest.cxl, policy.cxl, _RELAUNCH),
        ("aes_256_xts", guest.aes_256_xts, policy.aes_256_xts, _RELAUNCH),
        ("page_swap", not guest.page_swap_disabled, policy.page_swap, _RELAUNCH),
        ("host_smt", platform.smt, policy.host_smt, _FIRMWARE_SETUP),
        ("ecc", platform.ecc, policy.ecc, _FIRMWARE_SETUP),
        ("rapl", not platform.rapl_disabled, policy.rapl, _FIRMWARE_SETUP),
        (
            "ciphertext_hiding",
            platform.ciphertext_hiding,
            policy.ciphertext_hiding,
            _FIRMWARE_SETUP,
        ),
        ("alias_check", platform.alias_check, policy.alias_check, _FIRMWARE_UPDATE),
    )
    reasons = [
        *_one_of("product", claims.product, policy.product),
        *_one_of("measurement", claims.measurement, policy.measurement),
        *_one_of("host_data", claims.host_data, policy.host_data),
        *_one_of("id_key_digest", claims.id_key_digest, policy.id_key_digest),
        *_one_of("author_key_digest", claims.author_key_digest, policy.author_key_digest),
        *_one_of("family_id", claims.family_id, policy.family_id),
        *_one_of("image_id", claims.image_id, policy.image_id),
        *_one_of("vmpl", claims.vmpl, policy.vmpl),
        *_one_of("signing_key", claims.signing_key, policy.signing_key),
        *_one_of("chip_id", claims.chip_id, policy.chip_id),
        *_one_of("csp_id", claims.csp_id, policy.csp_id if claims.csp_id else "any"),
        *_tcb("reported_tcb", claims.reported_tcb, claims.product, policy.reported_tcb_min),
        *_tcb("current_tcb", claims.current_tcb, claims.product, policy.current_tcb_min),
        *_tcb("committed_tcb", claims.committed_tcb, claims.product, policy.committed_tcb_min),
        *_tcb("launch_tcb", claims.launch_tcb, claims.product, policy.launch_tcb_min),
        *_provisional(claims, policy.provisional_firmware),
        *_mitigations(claims, policy.mitigations),
    ]
    for field, is_so, wanted, mend in flags:
        if wanted == ("forbidden" if is_so else "required"):
            came = "on" if is_so else "off"
            reasons.append(_reason(field, f"{field} is {came}", wanted, came, mend))
    if policy.guest_svn_min != "any" and claims.guest_svn < policy.guest_svn_min:
        reasons.append(
            _reason(
                "guest_svn",
                "the guest's security version is too low",
                f"at least {policy.guest_svn_min}",
                str(claims.guest_svn),
                "launch a newer image",
            )
        )
    abi = (guest.abi_major, guest.abi_minor)
    if policy.abi_min != "any" and abi < policy.abi_min:
        reasons.append(
            _reason(
                "abi",
                "the guest policy allows older firmware",
                f"at least {policy.abi_min[0]}.{policy.abi_min[1]}",
                f"{abi[0]}.{abi[1]}",
                _RELAUNCH,
            )
        )
    if policy.revocation == "checked" and claims.revocation != "checked":
        reasons.append(
            _reason(
                "revocation",
                "it is not known whether AMD has revoked the chain",
                "a current CRL",
                "none",
                "send AMD's current CRL with the endorsements",
            )
        )
    return reasons


_RELAUNCH = "launch the guest with another guest policy"
_FIRMWARE_SETUP = "the host's operator changes the firmware setup"
_FIRMWARE_UPDATE = "the host's operator updates the firmware"


def _reason(field: str, message: str, expected: str, came: str, mend: str) -> Reason:
    return Reason(code=f"snp.{field}", message=message, expected=expected, came=came, mend=mend)


def _one_of(
    field: str, came: str | int | None, accepted: Sequence[str | int] | AnyValue
) -> Iterable[Reason]:
    if not isinstance(accepted, str) and came not in accepted:
        yield _reason(
            field,
            f"{field} is not one that the policy accepts",
            " or ".join(str(value) for value in accepted) or "nothing",
            "nothing" if came is None else str(came),
            "run what the policy names, or add this value to the policy",
        )


def _tcb(field: str, tcb: Tcb, product: Product, minima: TcbMinima) -> Iterable[Reason]:
    if minima == "any":
        return
    minimum = minima.get(product)
    if minimum is None:
        yield _reason(
            field,
            f"the policy has no minimum for {field} on this product line",
            ", ".join(sorted(minima)) or "nothing",
            product,
            "add the product line to the policy",
        )
        return
    short = [
        f"{component} {came} of {wanted}"
        for component, came, wanted in (
            ("fmc", tcb.fmc or 0, minimum.fmc),
            ("boot_loader", tcb.boot_loader, minimum.boot_loader),
            ("tee", tcb.tee, minimum.tee),
            ("snp", tcb.snp, minimum.snp),
            ("microcode", tcb.microcode, minimum.microcode),
        )
        if came < wanted
    ]
    if short:
        yield _reason(
            field,
            f"{field} is too low: {', '.join(short)}",
            f"at least {_minimum_as_tcb(minimum, product)}",
            str(tcb),
            _FIRMWARE_UPDATE,
        )


def _minimum_as_tcb(minimum: TcbMinimum, product: Product) -> Tcb:
    return Tcb(
        fmc=minimum.fmc if product is Product.TURIN else None,
        boot_loader=minimum.boot_loader,
        tee=minimum.tee,
        snp=minimum.snp,
        microcode=minimum.microcode,
    )


def _provisional(claims: SnpClaims, wanted: Literal["forbidden", "any"]) -> Iterable[Reason]:
    current = (claims.current_firmware, claims.current_tcb)
    committed = (claims.committed_firmware, claims.committed_tcb)
    if wanted == "forbidden" and current != committed:
        yield _reason(
            "provisional_firmware",
            "the running firmware is not committed and can be rolled back",
            f"{committed[0]}; {committed[1]}",
            f"{current[0]}; {current[1]}",
            "the host's operator commits the firmware",
        )


def _mitigations(claims: SnpClaims, wanted: int | AnyValue) -> Iterable[Reason]:
    if wanted == "any":
        return
    both = (claims.launch_mitigations or 0) & (claims.current_mitigations or 0)
    if wanted & ~both:
        yield _reason(
            "mitigations",
            "mitigations are missing at launch or now",
            f"{wanted:#x}",
            f"{both:#x}",
            _FIRMWARE_UPDATE,
        )
