"""Each field of a Nitro policy refuses what it should, and no field may be left out."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import msgspec
import pytest

from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro.claims import NitroClaims
from aigovtool.attestation.nitro.policy import NitroPolicy, appraise
from aigovtool.attestation.nitro.verify import verify
from tests.attestation.snp_nitro_vectors import nitro_policy, one

OTHER = "ab" * 48
ZERO = "00" * 48


@cache
def claims_of(vector_id: str) -> NitroClaims:
    vector = one(Tee.NITRO, vector_id)
    return verify(vector.evidence, vector.endorsements, now=vector.time)


def production() -> NitroClaims:
    return claims_of("nitro/production-nonce")


def with_pcrs(claims: NitroClaims, pcrs: dict[int, str]) -> NitroClaims:
    return replace(claims, pcrs={**claims.pcrs, **pcrs})


def codes(claims: NitroClaims, **fields: Any) -> list[str]:
    return [reason.code for reason in appraise(claims, nitro_policy(**fields))]


def test_any_is_any() -> None:
    assert codes(production()) == []
    assert codes(claims_of("nitro/debug")) == []


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 8])
def test_a_pcr_that_is_not_listed(index: int) -> None:
    field, accepted = f"pcr{index}", production().pcrs[index]
    assert codes(production(), **{field: [OTHER, accepted]}) == []
    changed = with_pcrs(production(), {index: OTHER})
    [reason] = appraise(changed, nitro_policy(**{field: [accepted]}))
    assert (reason.code, reason.expected, reason.came) == (f"nitro.{field}", accepted, OTHER)
    assert codes(production(), **{field: []}) == [f"nitro.{field}"]
    assert codes(changed) == []


@pytest.mark.parametrize("index", [5, 6, 7, 9, 15, 16, 31])
def test_every_other_pcr_is_zero_unless_it_is_named(index: int) -> None:
    assert codes(production(), other_pcrs={}) == []
    changed = with_pcrs(production(), {index: OTHER})
    assert codes(changed) == []
    assert codes(changed, other_pcrs={}) == [f"nitro.pcr{index}"]
    assert codes(changed, other_pcrs={str(index): [OTHER]}) == []
    assert codes(changed, other_pcrs={str(index): [ZERO]}) == [f"nitro.pcr{index}"]


def test_a_named_pcr_that_is_not_there() -> None:
    [reason] = appraise(production(), nitro_policy(other_pcrs={"20": [OTHER]}))
    assert (reason.code, reason.came) == ("nitro.pcr20", "nothing")


@pytest.mark.parametrize("vector_id", ["nitro/debug", "nitro/debug-nonce"])
def test_debug_mode(vector_id: str) -> None:
    assert codes(claims_of(vector_id), debug="forbidden") == ["nitro.debug"]
    assert codes(production(), debug="forbidden") == []


def test_an_instance_that_is_not_pinned() -> None:
    instance = production().parent_instance
    assert codes(production(), parent_instance=[instance]) == []
    assert codes(production(), parent_instance=["i-0"]) == ["nitro.parent_instance"]


def test_a_document_that_is_too_old() -> None:
    claims = replace(production(), verified_at=production().timestamp + timedelta(seconds=60))
    assert codes(claims, max_age_s=60) == []
    assert codes(claims, max_age_s=59) == ["nitro.age"]


def test_every_reason_is_listed_at_once() -> None:
    found = codes(claims_of("nitro/debug"), debug="forbidden", pcr0=[OTHER], parent_instance=[])
    assert sorted(found) == ["nitro.debug", "nitro.parent_instance", "nitro.pcr0"]


class TestTheFile:
    FREE = {"tee": "nitro"} | dict.fromkeys(NitroPolicy.__struct_fields__, "any")

    def test_has_no_defaults(self) -> None:
        assert NitroPolicy.__struct_defaults__ == ()

    @pytest.mark.parametrize("field", NitroPolicy.__struct_fields__)
    def test_leaving_a_field_out_is_an_error(self, field: str) -> None:
        lines = (f'{name} = "{value}"' for name, value in self.FREE.items() if name != field)
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.toml.decode("\n".join(lines), type=NitroPolicy)

    @pytest.mark.parametrize(
        "change",
        [
            {"surplus": "any"},
            {"tee": "snp"},
            {"pcr0": OTHER},
            {"pcr0": ["ab"]},
            {"pcr0": [OTHER.upper()]},
            {"debug": "allowed"},
            {"max_age_s": 0},
            {"max_age_s": 3 * 3600 + 1},
            {"other_pcrs": {"0": [OTHER]}},
            {"other_pcrs": {"8": [OTHER]}},
            {"other_pcrs": {"32": [OTHER]}},
            {"other_pcrs": {"x": [OTHER]}},
        ],
        ids=str,
    )
    def test_a_typing_error_is_an_error(self, change: dict[str, Any]) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(self.FREE | change, NitroPolicy)
