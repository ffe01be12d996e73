"""
The trustworthiness vector: what eight aspects of an attester are worth, in numbers all agree on.

Rule 1: a value says in which tier its aspect is; each aspect gives its values a meaning of its own.
Rule 2: 0 is "no claim": of what the evidence does not show, nothing is said.
Rule 3: the status of the whole is the tier of the worst claim made.

Source: draft-ietf-rats-ar4si, sections 2.3 and 3.1; draft-ietf-rats-ear, appendix A (CDDL).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import msgspec

NO_CLAIM = 0
CRYPTO_VALIDATION_FAILED = 99  # of any aspect

RECOGNIZED_INSTANCE = 2
UNTRUSTWORTHY_INSTANCE = 96

APPROVED_CONFIGURATION = 2
UNSAFE_CONFIGURATION = 32
UNSUPPORTABLE_CONFIGURATION = 96

APPROVED_BOOT = 3  # what was started is known; what it started in turn is not
UNRECOGNIZED_RUNTIME = 33
CONTRAINDICATED_RUNTIME = 96

GENUINE_HARDWARE = 2
UNSAFE_HARDWARE = 32  # genuine, with known vulnerabilities
CONTRAINDICATED_HARDWARE = 96
UNRECOGNIZED_HARDWARE = 97

ENCRYPTED_MEMORY = 2
VISIBLE_MEMORY = 96  # to the owner of the machine

Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]


class Tier(StrEnum):
    """How far to trust, from the least said to the worst; the value is the word of JSON."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"

    @property
    def number(self) -> int:
        """As CBOR writes it; a higher number is worse."""
        return _NUMBERS[self]


_NUMBERS = {Tier.NONE: 0, Tier.AFFIRMING: 2, Tier.WARNING: 32, Tier.CONTRAINDICATED: 96}
TIERS = {number: tier for tier, number in _NUMBERS.items()}


def tier_of(claim: int) -> Tier:
    """Return the tier of a value; the negative half is for values of an implementer's own."""
    if -1 <= claim <= 1:
        return Tier.NONE
    if -32 <= claim < 32:
        return Tier.AFFIRMING
    return Tier.WARNING if -96 <= claim < 96 else Tier.CONTRAINDICATED


class TrustVector(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """
    The eight aspects, in the order of their CBOR keys; see the draft for what each is about.

    Unknown aspects are passed over: a receiver must ignore claims that it does not know.
    """

    instance_identity: Claim = NO_CLAIM
    configuration: Claim = NO_CLAIM
    executables: Claim = NO_CLAIM
    file_system: Claim = NO_CLAIM
    hardware: Claim = NO_CLAIM
    runtime_opaque: Claim = NO_CLAIM
    storage_opaque: Claim = NO_CLAIM
    sourced_data: Claim = NO_CLAIM

    def claims(self) -> Iterator[int]:
        """Give the eight values in their order."""
        return iter(msgspec.structs.astuple(self))

    @property
    def tier(self) -> Tier:
        """The tier of the worst claim made; `Tier.NONE` when none is."""
        return max(map(tier_of, self.claims()), key=lambda tier: tier.number)

    def joined(self, other: TrustVector) -> TrustVector:
        """
        Return what can be said of two attesters together.

        What is bad of either is bad of both; what only one claims, the two do not.
        """
        pairs = zip(self.claims(), other.claims(), strict=True)
        worse = (_worse(one, two) for one, two in pairs)
        return TrustVector(**dict(zip(TrustVector.__struct_fields__, worse, strict=True)))


def _worse(one: int, two: int) -> int:
    worst = max(one, two, key=lambda claim: tier_of(claim).number)
    if tier_of(worst) is Tier.AFFIRMING and NO_CLAIM in (one, two):
        return NO_CLAIM
    return worst
