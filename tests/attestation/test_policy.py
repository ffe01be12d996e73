"""The policy file: nothing is taken for granted, and every mistake is named with its mend."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import tomli_w

from aigovtool.attestation.appraise import appraise
from aigovtool.attestation.evidence import Tee
from aigovtool.attestation.kinds import KINDS
from aigovtool.attestation.original_manifest import import_manifest
from aigovtool.attestation.policy import Custodian, Policy, parse_policy, write_policy
from aigovtool.attestation.propose import propose
from aigovtool.attestation.strict import strict_policy, strict_sgx, strict_tdx
from aigovtool.attestation.verify import verify
from aigovtool.crypto.signing import format_public_key
from aigovtool.errors import AppraisalError, ConfigurationError, Reason
from aigovtool.ids import LoanId
from tests.attestation.dcap_vectors import case
from tests.attestation.simulation import NOW, honest_evidence, platform, policy

VENDORS = [tee for tee in KINDS if tee is not Tee.SIMULATED]
CUSTODIAN = Custodian(public_key=bytes(range(32)), loan=LoanId("loan_0123"))


def table_of(tee: Tee) -> dict[str, Any]:
    """Return one alternative as the TOML table that it is written as."""
    written = (
        policy() if tee is Tee.SIMULATED else Policy(accept=(strict_policy(tee),), custodian=None)
    )
    tables: list[dict[str, Any]] = tomllib.loads(write_policy(written))["accept"]
    return tables[0]


def parsed(*tables: dict[str, Any], **others: object) -> Policy:
    return parse_policy(tomli_w.dumps({"version": 1, "accept": list(tables), **others}).encode())


def refused(*tables: dict[str, Any], **others: object) -> tuple[Reason, ...]:
    with pytest.raises(ConfigurationError) as caught:
        parsed(*tables, **others)
    return caught.value.reasons


@pytest.mark.parametrize("tee", KINDS)
def test_what_is_written_is_read_back(tee: Tee) -> None:
    written = parsed(table_of(tee))

    assert parse_policy(write_policy(written, preface="a line\nanother").encode()) == written
    assert parsed(table_of(tee)) == written


@pytest.mark.parametrize(
    ("tee", "field"), [(tee, field) for tee in KINDS for field in table_of(tee)]
)
def test_a_missing_field_is_an_error_that_names_it(tee: Tee, field: str) -> None:
    table = table_of(tee)
    del table[field]

    reasons = refused(table)

    assert len(reasons) == 1
    assert reasons[0].message.startswith(f"accept[0].{field} ")
    assert reasons[0].expected
    assert reasons[0].mend


@pytest.mark.parametrize("tee", KINDS)
def test_an_unknown_field_is_an_error_that_names_it(tee: Tee) -> None:
    reasons = refused({**table_of(tee), "mr_tdd": "any"})

    assert [reason.code for reason in reasons] == ["policy.unknown"]
    assert "accept[0].mr_tdd" in reasons[0].message


def test_all_mistakes_are_told_at_once_each_with_its_table() -> None:
    first, second = table_of(Tee.TDX), table_of(Tee.SGX)
    del first["mr_td"]
    first["debug"] = "no"
    second["mr_signer"] = ["00"]

    reasons = refused(first, second, custodian={"public_key": "ed25519:short", "loan": "x"})

    text = "\n".join(reason.message for reason in reasons)
    for named in ("public key", "accept[0].mr_td", "accept[0].debug", "accept[1].mr_signer"):
        assert named in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mr_td", []),
        ("mr_td", "anything"),
        ("mr_td", ["AB" * 48]),
        ("mr_td", ["ab" * 47]),
        ("rt_mr3", ""),
        ("debug", 0),
        ("sept_ve_disable", "SET"),
        ("tcb_statuses", []),
        ("tcb_statuses", ["UpToDate", "Fine"]),
        ("tcb_grace_days", -1),
        ("min_tcb_evaluation_number", "18"),
        ("pinned_platforms", []),
        ("xfam_mask", "ff"),
    ],
)
def test_a_wrong_value_is_never_taken_for_a_right_one(field: str, value: object) -> None:
    reasons = refused({**table_of(Tee.TDX), field: value})

    assert [reason.code for reason in reasons] == ["policy.value"]
    assert f"accept[0].{field}" in reasons[0].message


@pytest.mark.parametrize("tee", [None, "sev", 7, ""])
def test_an_unknown_tee(tee: object) -> None:
    table = table_of(Tee.TDX)
    if tee is None:
        del table["tee"]
    else:
        table["tee"] = tee

    assert refused(table)[0].code == "policy.tee"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"version = 1",
        b"version = 1\naccept = []",
        b"version = 2\n[[accept]]\ntee = 'tdx'",
        b"version = 1\nversion = 1",
        b"\xff",
        b"version = 1\n[accept]\ntee = 'tdx'",
    ],
)
def test_what_is_no_policy(text: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_policy(text)


def test_custodian_is_demanded_only_by_who_needs_it() -> None:
    without = parsed(table_of(Tee.TDX))
    with pytest.raises(ConfigurationError, match="whose loan"):
        without.require_custodian()

    table = {"public_key": format_public_key(CUSTODIAN.public_key), "loan": CUSTODIAN.loan}
    with_one = parsed(table_of(Tee.TDX), custodian=table)
    assert with_one.require_custodian() == CUSTODIAN
    assert parse_policy(write_policy(with_one).encode()) == with_one


def test_the_second_alternative_accepts_and_is_named() -> None:
    one = case("tdx/v4-up-to-date")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    other = table_of(Tee.TDX) | {"mr_td": ["00" * 48]}

    result = appraise(claims, parsed(other, table_of(Tee.TDX)))

    assert result.alternative == 1
    assert not result.simulated


def test_the_reasons_are_those_of_the_nearest_alternative() -> None:
    one = case("tdx/v4-up-to-date")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    near = table_of(Tee.TDX) | {"mr_td": ["00" * 48]}
    far = near | {"rt_mr0": ["00" * 48], "min_tcb_evaluation_number": 99}

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, parsed(far, near))

    assert [reason.code for reason in caught.value.reasons] == ["tdx.mr_td", "policy.others"]


def test_evidence_of_a_kind_that_no_alternative_is_about() -> None:
    one = case("tdx/v4-up-to-date")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, Policy(accept=(strict_sgx(),), custodian=None))

    assert caught.value.reasons[0].code == "policy.tee"
    assert caught.value.reasons[0].expected == "sgx"


def test_simulation_is_accepted_by_no_policy_about_tdx() -> None:
    claims = verify(honest_evidence(), platform().endorsements(NOW), now=NOW)

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, Policy(accept=(strict_tdx(),), custodian=None))

    assert caught.value.reasons[0].code == "policy.tee"


TDX_RULES = [
    # (fields of the policy, code of the one reason), for the vector tdx/v4-up-to-date
    ({"mr_td": ["00" * 48]}, "tdx.mr_td"),
    ({"rt_mr0": ["00" * 48]}, "tdx.rt_mr0"),
    ({"rt_mr1": ["00" * 48]}, "tdx.rt_mr1"),
    ({"rt_mr2": ["00" * 48]}, "tdx.rt_mr2"),
    ({"rt_mr3": ["01" * 48]}, "tdx.rt_mr3"),
    ({"mr_config_id": ["01" * 48]}, "tdx.mr_config_id"),
    ({"mr_owner": ["01" * 48]}, "tdx.mr_owner"),
    ({"mr_owner_config": ["01" * 48]}, "tdx.mr_owner_config"),
    ({"mr_service_td": ["01" * 48]}, "tdx.mr_service_td"),
    ({"mr_seam": ["01" * 48]}, "tdx.mr_seam"),
    ({"sept_ve_disable": "clear"}, "tdx.sept_ve_disable"),
    ({"pks": "set"}, "tdx.pks"),
    ({"key_locker": "set"}, "tdx.key_locker"),
    ({"migratable": "set"}, "tdx.migratable"),
    ({"perfmon": "set"}, "tdx.perfmon"),
    ({"xfam": "e700060000000000", "xfam_mask": "ff" * 8}, "tdx.xfam"),
    ({"tcb_statuses": ["OutOfDate"]}, "tcb.status"),
    ({"min_tcb_evaluation_number": 18}, "tcb.evaluation_number"),
    ({"pinned_platforms": ["00" * 16]}, "platform.pin"),
    ({"smt": "refused"}, "platform.smt"),
    ({"dynamic_platform": "refused"}, "platform.dynamic"),
    ({"cached_keys": "refused"}, "platform.cached_keys"),
]


@pytest.mark.parametrize(("fields", "code"), TDX_RULES, ids=[code for _, code in TDX_RULES])
def test_each_rule_on_tdx_refuses_on_its_own(fields: dict[str, Any], code: str) -> None:
    one = case("tdx/v4-up-to-date")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    assert appraise(claims, parsed(table_of(Tee.TDX))).alternative == 0

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, parsed(table_of(Tee.TDX) | fields))

    assert [reason.code for reason in caught.value.reasons] == [code]


SGX_RULES = [
    ({"mr_enclave": ["00" * 32]}, "sgx.mr_enclave"),
    ({"mr_signer": ["00" * 32]}, "sgx.mr_signer"),
    ({"isv_prod_id": [7]}, "sgx.isv_prod_id"),
    ({"min_isv_svn": 1}, "sgx.isv_svn"),
    (
        {"attributes_flags": "15" + "00" * 7, "attributes_mask_flags": "ff" * 8},
        "sgx.attributes_flags",
    ),
    ({"attributes_xfrm": "03" + "00" * 7, "attributes_mask_xfrm": "ff" * 8}, "sgx.attributes_xfrm"),
    ({"misc_select": "00000000", "misc_mask": "01000000"}, "sgx.misc_select"),
    ({"advisories_refused": ["INTEL-SA-00615"]}, "tcb.advisory"),
]


@pytest.mark.parametrize(("fields", "code"), SGX_RULES, ids=[code for _, code in SGX_RULES])
def test_each_rule_on_sgx_refuses_on_its_own(fields: dict[str, Any], code: str) -> None:
    one = case("sgx/v3-azure-tcb-recovery")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    accepts = table_of(Tee.SGX) | {"tcb_statuses": ["SWHardeningNeeded"]}
    assert appraise(claims, parsed(accepts)).tcb_status == "SWHardeningNeeded"

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, parsed(accepts | fields))

    assert [reason.code for reason in caught.value.reasons] == [code]


def test_debug_is_accepted_only_by_saying_so_and_never_through_a_mask() -> None:
    one = case("sgx/v3-debug")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    lenient = table_of(Tee.SGX) | {"tcb_statuses": ["ConfigurationAndSWHardeningNeeded"]}
    masks = {"attributes_flags": "07" + "00" * 7, "attributes_mask_flags": "ff" * 8}

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, parsed(lenient | masks))
    assert [reason.code for reason in caught.value.reasons] == ["sgx.debug"]

    result = appraise(claims, parsed(lenient | masks | {"debug": True}))
    assert any("debug" in warning for warning in result.warnings)


@pytest.mark.parametrize("name", ["tdx/v4-up-to-date", "tdx/v5-up-to-date", "tdx/v4-event-log"])
def test_a_proposed_policy_accepts_its_evidence_and_no_other(name: str) -> None:
    one = case(name)
    claims = verify(one.evidence(), one.endorsements(), now=one.now)
    proposed = Policy(accept=(propose(claims),), custodian=None)

    assert parse_policy(write_policy(proposed).encode()) == proposed
    result = appraise(claims, proposed)
    assert result.warnings == ()

    other = case("tdx/v4-gcp-2026")
    with pytest.raises(AppraisalError):
        appraise(verify(other.evidence(), other.endorsements(), now=other.now), proposed)


def test_a_proposed_policy_does_not_write_faults_down() -> None:
    one = case("tdx/v4-debug")
    claims = verify(one.evidence(), one.endorsements(), now=one.now)

    with pytest.raises(AppraisalError) as caught:
        appraise(claims, Policy(accept=(propose(claims),), custodian=None))

    assert [reason.code for reason in caught.value.reasons] == ["tdx.debug"]


ORIGINAL = """
mr_enclave = "{mr_enclave}"
allow_debug = false
attributes_flags_hex = "0x4"
attributes_mask_flags_hex = "0xfffffffffffffffb"
attributes_xfrm_hex = "0x3"
attributes_mask_xfrm_hex = "0xffffffffffffff1b"
misc_mask_hex = "0xffffffff"
misc_select_hex = "0x1"
"""


class TestOriginalManifest:
    one = case("sgx/v3-azure-tcb-recovery")

    def manifest(self, **changed: str) -> bytes:
        text = ORIGINAL.format(mr_enclave=self.one.fields["mrenclave"])
        for name, value in changed.items():
            lines = [line for line in text.splitlines() if not line.startswith(name)]
            text = "\n".join([*lines, f"{name} = {value}"])
        return text.encode()

    def test_accepts_what_the_original_accepted(self) -> None:
        claims = verify(self.one.evidence(), self.one.endorsements(), now=self.one.now)
        masked = self.manifest(attributes_mask_flags_hex='"0xffffffffffffffff"')
        imported = Policy(accept=(import_manifest(masked),), custodian=None)

        assert parse_policy(write_policy(imported).encode()) == imported
        assert appraise(claims, imported).tcb_status == "SWHardeningNeeded"

    @pytest.mark.parametrize(
        ("field", "value", "code"),
        [
            ("mr_enclave", f'"{"0" * 64}"', "sgx.mr_enclave"),
            ("attributes_flags_hex", '"0x14"', "sgx.attributes_flags"),
            ("attributes_xfrm_hex", '"0x2"', "sgx.attributes_xfrm"),
            ("misc_select_hex", '"0x0"', "sgx.misc_select"),
        ],
    )
    def test_refuses_what_the_original_refused(self, field: str, value: str, code: str) -> None:
        claims = verify(self.one.evidence(), self.one.endorsements(), now=self.one.now)
        imported = import_manifest(self.manifest(**{field: value}))

        with pytest.raises(AppraisalError) as caught:
            appraise(claims, Policy(accept=(imported,), custodian=None))

        assert [reason.code for reason in caught.value.reasons] == [code]

    @pytest.mark.parametrize(
        "text", [b"", b"mr_enclave = 1", b"\xff", ORIGINAL.replace("0x1", "0x100000000").encode()]
    )
    def test_anything_else_is_refused(self, text: bytes) -> None:
        with pytest.raises(ConfigurationError):
            import_manifest(text.replace(b"{mr_enclave}", b"00" * 32))


@pytest.mark.parametrize("tee", VENDORS)
def test_the_strict_policy_is_about_its_own_kind(tee: Tee) -> None:
    assert parsed(table_of(tee)).accept == (strict_policy(tee),)


def test_there_is_no_strict_policy_for_a_simulation() -> None:
    with pytest.raises(ConfigurationError):
        strict_policy(Tee.SIMULATED)
