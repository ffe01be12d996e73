"""Each field of an SEV-SNP policy refuses what it should, and no field may be left out."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.nitro.policy import NitroPolicy
from aigovtool.attestation.policy import parse_policy
from aigovtool.attestation.snp.claims import SnpClaims
from aigovtool.attestation.snp.layout import FirmwareVersion
from aigovtool.attestation.snp.policy import SnpPolicy, TcbMinimum, appraise
from aigovtool.attestation.snp.product import Product
from aigovtool.attestation.snp.verify import verify
from tests.attestation.snp_nitro_vectors import one, snp_policy


@cache
def claims_of(vector_id: str) -> SnpClaims:
    vector = one(Tee.SNP, vector_id)
    return verify(vector.evidence, vector.endorsements, now=vector.time)


def milan() -> SnpClaims:
    return claims_of("snp/milan-v3")


def turin() -> SnpClaims:
    return claims_of("snp/turin-v5-fmc")


def vlek() -> SnpClaims:
    return claims_of("snp/milan-v3-vlek")


def guest(claims: SnpClaims, **change: Any) -> SnpClaims:
    return replace(claims, guest_policy=replace(claims.guest_policy, **change))


def host(claims: SnpClaims, **change: Any) -> SnpClaims:
    return replace(claims, platform_info=replace(claims.platform_info, **change))


def codes(claims: SnpClaims, **fields: Any) -> list[str]:
    return [reason.code for reason in appraise(claims, snp_policy(**fields))]


@pytest.mark.parametrize("claims", [milan, turin, vlek])
def test_any_is_any(claims: Any) -> None:
    assert codes(claims()) == []


ONE_OF = [
    ("product", ["Milan", "Genoa"], {"product": Product.TURIN}),
    ("measurement", None, {"measurement": "00" * 48}),
    ("host_data", None, {"host_data": "00" * 32}),
    ("id_key_digest", None, {"id_key_digest": "00" * 48}),
    ("author_key_digest", None, {"author_key_digest": "11" * 48}),
    ("family_id", None, {"family_id": "ff" * 16}),
    ("image_id", None, {"image_id": "ff" * 16}),
    ("vmpl", None, {"vmpl": 3}),
    ("signing_key", None, {"signing_key": "vlek"}),
    ("chip_id", None, {"chip_id": "00" * 64}),
    ("chip_id", None, {"chip_id": None}),
]


@pytest.mark.parametrize(("field", "accepted", "change"), ONE_OF)
def test_a_value_that_is_not_listed(
    field: str, accepted: list[Any] | None, change: dict[str, Any]
) -> None:
    claims = milan()
    accepted = accepted or [getattr(claims, field)]
    assert codes(claims, **{field: accepted}) == []
    changed = replace(claims, **change)
    [reason] = appraise(changed, snp_policy(**{field: accepted}))
    assert reason.code == f"snp.{field}"
    assert str(accepted[0]) in (reason.expected or "")
    assert reason.came == (str(change[field]) if change[field] is not None else "nothing")
    assert reason.mend
    assert codes(changed, **{field: []}) == [f"snp.{field}"]
    assert codes(changed) == []


def test_a_cloud_is_asked_of_a_vlek_only() -> None:
    assert codes(vlek(), csp_id=["CN=cc-us-east-2.amazonaws.com"]) == []
    assert codes(vlek(), csp_id=["CN=other"]) == ["snp.csp_id"]
    assert codes(milan(), csp_id=["CN=other"]) == []


# field, accepted state, refused state, what the policy says
GUEST = [
    ("debug", "debug", False, "forbidden"),
    ("smt", "smt", False, "forbidden"),
    ("migration_agent", "migrate_ma", False, "forbidden"),
    ("single_socket", "single_socket", True, "required"),
    ("cxl", "cxl", False, "forbidden"),
    ("aes_256_xts", "aes_256_xts", True, "required"),
    ("page_swap", "page_swap_disabled", True, "forbidden"),
]
HOST = [
    ("host_smt", "smt", False, "forbidden"),
    ("ecc", "ecc", True, "required"),
    ("rapl", "rapl_disabled", True, "forbidden"),
    ("ciphertext_hiding", "ciphertext_hiding", True, "required"),
    ("alias_check", "alias_check", True, "required"),
]


@pytest.mark.parametrize(
    ("change", "field", "claim", "accepted", "word"),
    [*((guest, *row) for row in GUEST), *((host, *row) for row in HOST)],
)
def test_a_setting_that_is_not_as_demanded(
    change: Any, field: str, claim: str, accepted: bool, word: str
) -> None:
    assert codes(change(milan(), **{claim: accepted}), **{field: word}) == []
    refused = change(milan(), **{claim: not accepted})
    [reason] = appraise(refused, snp_policy(**{field: word}))
    assert (reason.code, reason.expected) == (f"snp.{field}", word)
    assert reason.came == ("on" if word == "forbidden" else "off")
    assert codes(refused) == []


def test_the_debug_vector_is_refused() -> None:
    claims = claims_of("snp/milan-v2-debug")
    assert claims.debug
    assert codes(claims, debug="forbidden") == ["snp.debug"]


def test_a_guest_svn_below_the_minimum() -> None:
    claims = replace(milan(), guest_svn=2)
    assert codes(claims, guest_svn_min=2) == []
    assert codes(claims, guest_svn_min=3) == ["snp.guest_svn"]


def test_a_guest_policy_that_allows_older_firmware() -> None:
    claims = guest(milan(), abi_major=1, abi_minor=51)
    for accepted in ([1, 51], [1, 0], [0, 255]):
        assert codes(claims, abi_min=accepted) == []
    for refused in ([1, 52], [2, 0]):
        assert codes(claims, abi_min=refused) == ["snp.abi"]


COMPONENTS = ("fmc", "boot_loader", "tee", "snp", "microcode")
TCBS = ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")


@pytest.mark.parametrize("tcb", TCBS)
@pytest.mark.parametrize("component", COMPONENTS)
def test_each_component_of_each_tcb_has_its_minimum(tcb: str, component: str) -> None:
    claims = turin()
    values = getattr(claims, tcb)
    minimum = {name: getattr(values, name) for name in COMPONENTS}
    field = f"{tcb}_min"
    assert codes(claims, **{field: {"Turin": minimum}}) == []
    minimum[component] += 1
    [reason] = appraise(claims, snp_policy(**{field: {"Turin": minimum}}))
    assert reason.code == f"snp.{tcb}"
    assert component in reason.message
    assert reason.came == str(values)
    # A surplus in one component does not make up for a lack in another.
    generous = dict.fromkeys(COMPONENTS, 0) | {component: 255}
    assert codes(claims, **{field: {"Turin": generous}}) == [f"snp.{tcb}"]


def test_a_product_line_without_a_minimum() -> None:
    minimum = dict.fromkeys(COMPONENTS, 0)
    assert codes(turin(), reported_tcb_min={"Milan": minimum}) == ["snp.reported_tcb"]
    assert codes(turin(), reported_tcb_min={}) == ["snp.reported_tcb"]
    both = {"Milan": minimum, "Turin": minimum}
    assert codes(turin(), reported_tcb_min=both) == []
    assert codes(milan(), reported_tcb_min=both) == []


def test_the_older_lines_have_no_fmc() -> None:
    minimum = dict.fromkeys(COMPONENTS, 0) | {"fmc": 1}
    assert codes(milan(), reported_tcb_min={"Milan": minimum}) == ["snp.reported_tcb"]


def test_firmware_that_can_still_be_rolled_back() -> None:
    claims = replace(
        milan(),
        committed_tcb=milan().current_tcb,
        committed_firmware=milan().current_firmware,
    )
    assert codes(claims, provisional_firmware="forbidden") == []
    older = replace(claims, committed_firmware=FirmwareVersion(0, 0, 0))
    assert codes(older, provisional_firmware="forbidden") == ["snp.provisional_firmware"]
    lower = replace(claims, committed_tcb=replace(claims.current_tcb, snp=0))
    assert codes(lower, provisional_firmware="forbidden") == ["snp.provisional_firmware"]
    assert codes(older) == codes(lower) == []


@pytest.mark.parametrize(
    ("launch", "current", "wanted", "accepted"),
    [
        (7, 7, 7, True),
        (7, 3, 4, False),
        (3, 7, 4, False),
        (None, None, 1, False),
        (None, None, 0, True),
    ],
)
def test_mitigations_must_be_there_at_launch_and_now(
    launch: int | None, current: int | None, wanted: int, accepted: bool
) -> None:
    claims = replace(turin(), launch_mitigations=launch, current_mitigations=current)
    assert codes(claims, mitigations=wanted) == ([] if accepted else ["snp.mitigations"])
    assert codes(claims) == []


def test_unknown_revocation_is_accepted_only_by_saying_so() -> None:
    assert codes(milan(), revocation="checked") == ["snp.revocation"]
    assert codes(replace(milan(), revocation="checked"), revocation="checked") == []
    assert codes(milan(), revocation="any") == []


def test_every_reason_is_listed_at_once() -> None:
    claims = guest(milan(), debug=True)
    found = codes(
        claims, debug="forbidden", measurement=["00" * 48], vmpl=[3], revocation="checked"
    )
    assert sorted(found) == ["snp.debug", "snp.measurement", "snp.revocation", "snp.vmpl"]


class TestTheFile:
    FREE = "\n".join(f'{field} = "any"' for field in SnpPolicy.__struct_fields__)

    def test_reads_what_it_says(self) -> None:
        text = self.FREE.replace('measurement = "any"', f'measurement = ["{"ab" * 48}"]')
        text = text.replace('reported_tcb_min = "any"', "") + (
            '\ntee = "snp"\n[reported_tcb_min.Milan]\n'
            "fmc = 0\nboot_loader = 4\ntee = 0\nsnp = 24\nmicrocode = 219\n"
        )
        policy = msgspec.toml.decode(text, type=SnpPolicy)
        assert policy.measurement == ["ab" * 48]
        assert policy.reported_tcb_min == {
            Product.MILAN: TcbMinimum(fmc=0, boot_loader=4, tee=0, snp=24, microcode=219)
        }

    def test_has_no_defaults(self) -> None:
        assert SnpPolicy.__struct_defaults__ == ()
        assert TcbMinimum.__struct_defaults__ == ()

    @pytest.mark.parametrize("field", SnpPolicy.__struct_fields__)
    def test_leaving_a_field_out_is_an_error(self, field: str) -> None:
        text = 'tee = "snp"\n' + self.FREE.replace(f'\n{field} = "any"', "", 1)
        if field == SnpPolicy.__struct_fields__[0]:
            text = text.replace(f'{field} = "any"\n', "", 1)
        with pytest.raises(msgspec.ValidationError, match=field):
            msgspec.toml.decode(text, type=SnpPolicy)

    @pytest.mark.parametrize(
        "line",
        [
            'surplus = "any"',
            'measurement = "ab"',
            'measurement = ["ab"]',
            f'measurement = ["{"AB" * 48}"]',
            'debug = "allowed"',
            "debug = false",
            'guest_svn_min = "none"',
            "guest_svn_min = -1",
            'product = ["Naples"]',
            "vmpl = [4]",
            "abi_min = [1]",
            "reported_tcb_min = { Milan = { snp = 1 } }",
            'revocation = "unknown"',
        ],
    )
    def test_a_typing_error_is_an_error(self, line: str) -> None:
        field = line.partition(" ")[0]
        text = 'tee = "snp"\n' + self.FREE.replace(f'\n{field} = "any"', "", 1)
        if field == SnpPolicy.__struct_fields__[0]:
            text = text.replace(f'{field} = "any"\n', "", 1)
        with pytest.raises(msgspec.ValidationError):
            msgspec.toml.decode(f"{text}\n{line}\n", type=SnpPolicy)

    def test_another_tees_policy_is_not_this_one(self) -> None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.toml.decode(f'tee = "nitro"\n{self.FREE}', type=SnpPolicy)


def test_the_policies_in_the_documentation_are_policies() -> None:
    page = Path(__file__).parents[2] / "docs" / "attestation-snp-nitro.md"
    snp, nitro = (
        parse_policy(text.encode())
        for text in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    )
    assert [type(alternative) for alternative in nitro.accept] == [NitroPolicy]
    [alternative] = snp.accept
    assert isinstance(alternative, SnpPolicy)
    assert appraise(milan(), alternative) == []
