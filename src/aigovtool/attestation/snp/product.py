"""
The three AMD product lines that have SEV-SNP: their roots, their CPUIDs and their TCB layouts.

The pins are SHA-256 of the DER of AMD's root certificates (ARK), which AMD's key distribution
service gives last under ``https://kdsintf.amd.com/vcek/v1/{product}/cert_chain`` (and again under
``/vlek/v1/…``). They were computed from the copies in Google's ``go-sev-guest``; independent
projects that fetched from AMD pin the same. The certificates come with the endorsements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from aigovtool.errors import MalformedError

TCB_BYTES = 8


class Product(StrEnum):
    """A product line, named as in AMD's certificates; Genoa includes Bergamo and Siena."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


AMD_ROOTS: Mapping[bytes, Product] = MappingProxyType(
    {
        bytes.fromhex(pin): product
        for pin, product in (
            ("69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd", Product.MILAN),
            ("4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1", Product.GENOA),
            ("1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a", Product.TURIN),
        )
    }
)

# (combined family, first and last combined model): AMD 57230, "Determining the Product Name".
_CPUIDS = (
    (0x19, 0x00, 0x0F, Product.MILAN),
    (0x19, 0x10, 0x1F, Product.GENOA),
    (0x19, 0xA0, 0xAF, Product.GENOA),  # Bergamo and Siena
    (0x1A, 0x00, 0x11, Product.TURIN),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """
    Security version numbers of the firmware, 0 to 255 each (AMD 56860, TCB_VERSION).

    Args:
        fmc: Turin only; None on the older lines, which do not have this component.
        boot_loader: of the secure processor.
        tee: the secure processor's operating system.
        snp: the SEV firmware.
        microcode: the lowest patch level of all cores.
    """

    fmc: int | None
    boot_loader: int
    tee: int
    snp: int
    microcode: int

    def __str__(self) -> str:
        fmc = "" if self.fmc is None else f"fmc {self.fmc}, "
        return (
            f"{fmc}boot_loader {self.boot_loader}, tee {self.tee}, snp {self.snp}, "
            f"microcode {self.microcode}"
        )


def product_of_cpuid(family: int, model: int) -> Product | None:
    """Return the product line of a combined family and model, or None when it is unknown."""
    for known_family, first, last, product in _CPUIDS:
        if family == known_family and first <= model <= last:
            return product
    return None


def parse_tcb(raw: bytes, product: Product) -> Tcb:
    """
    Read a TCB_VERSION, whose layout depends on the product line (AMD 56860, tables 3 and 4).

    Raises:
        MalformedError: a reserved byte is set, so *raw* has another layout than believed.
    """
    if product is Product.TURIN:
        fmc, boot_loader, tee, snp, *reserved, microcode = raw
        tcb = Tcb(fmc=fmc, boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode)
    else:
        boot_loader, tee, *reserved, snp, microcode = raw
        tcb = Tcb(fmc=None, boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode)
    if any(reserved):
        raise MalformedError(
            f"reserved bytes are set in a TCB version of {product}",
            code="snp.reserved",
            came=raw.hex(),
        )
    return tcb
