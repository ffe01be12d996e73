"""What a caller can do to the admin API by values that no type forbids: refused, and unchanged."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator

import pytest
import tomli_w
from starlette.testclient import TestClient

from aigovtool.custodian.api.admin import admin_app
from tests.custodian.house import House, house

NAMES = frozenset({"localhost"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("attacks")) as custodian:
        yield custodian


@pytest.fixture
def admin(made: House) -> TestClient:
    app = admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000")
    token = {"Authorization": f"Bearer {made.admin_token}"}
    return TestClient(app, base_url="http://localhost", headers=token)


def new_loan(admin: TestClient, **more: object) -> tuple[int, str]:
    """Ask for a loan; the status, and what was said of it."""
    model = admin.get("/api/v1/models").json()[0]["model"]
    answer = admin.post(
        "/api/v1/loans", json={"name": "another", "model": model, "credits": 1, **more}
    )
    return answer.status_code, answer.text


@pytest.mark.parametrize(
    "expires", ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z", "2199-01-01T00:00:00Z"]
)
def test_a_date_at_the_end_of_the_calendar_does_not_make_the_ledger_unreadable(
    admin: TestClient, expires: str
) -> None:
    before = admin.get("/api/v1/loans").json()
    status, said = new_loan(admin, expires=expires)
    assert (status, "too far" in said) == (400, True), said
    assert admin.get("/api/v1/loans").json() == before


def test_a_policy_without_a_field_is_named_and_makes_no_loan(
    made: House, admin: TestClient
) -> None:
    before = admin.get("/api/v1/loans").json()
    whole = tomllib.loads(made.app.folder.policy.read_text())
    (accepted,) = whole["accept"]
    for field in accepted:
        rest = {name: value for name, value in accepted.items() if name != field}
        status, said = new_loan(admin, policy=tomli_w.dumps({**whole, "accept": [rest]}))
        assert (status, field in said) == (400, True), said
    for policy in ("\0", "x", "[[accept]]", "[[accept]]\ntee = 'none'"):
        assert new_loan(admin, policy=policy)[0] == 400, policy
    assert admin.get("/api/v1/loans").json() == before


@pytest.mark.parametrize("limit", ["0" * 19 + "1" + "9" * 30, "9" * 6000, "-1", "1e3", "٣", "0"])
def test_a_limit_that_is_none_is_refused(admin: TestClient, limit: str) -> None:
    answer = admin.get("/api/v1/leases", params={"limit": limit})
    assert answer.status_code == 400


@pytest.mark.parametrize("origin", ["http://[x", "null", "http://localhost@evil.example", ""])
def test_an_origin_that_is_not_ours_is_refused(admin: TestClient, origin: str) -> None:
    before = admin.get("/request_consumption").json()
    form = {"number_inferences": "5"}
    answer = admin.post("/supply_inferences", data=form, headers={"Origin": origin})
    assert answer.status_code == 403
    assert admin.get("/request_consumption").json() == before


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost@evil", "[x"])
def test_a_rebound_name_is_refused(admin: TestClient, host: str) -> None:
    assert admin.get("/request_consumption", headers={"Host": host}).status_code == 403


def test_a_form_posted_by_a_page_without_the_token_grants_nothing(
    made: House, admin: TestClient
) -> None:
    before = admin.get("/request_consumption").json()
    page = TestClient(admin.app, base_url="http://localhost", cookies={"token": made.admin_token})
    for body in ("number_inferences=5", f"number_inferences=5&token={made.admin_token}"):
        answer = page.post(
            "/supply_inferences",
            content=body,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code == 401
    assert admin.get("/request_consumption").json() == before
