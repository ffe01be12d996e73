"""A borrower's token: it reads its loan and asks for more; every other route of all is closed."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from aigovtool.crypto.labels import Label
from aigovtool.custodian.api.admin import admin_app
from aigovtool.custodian.borrowers import Borrowers
from aigovtool.custodian.records import LoanTerms, RequestState
from aigovtool.errors import ConflictError, MalformedError, UnauthenticatedError, UnavailableError
from aigovtool.wire.codec import Signed, decode, open_signed
from aigovtool.wire.grants import GrantNotice
from tests.custodian.house import House, house
from tests.custodian.ledgers import REFUSALS, Bench

NAMES = frozenset({"localhost"})
V1 = "/api/v1"
MAY = {  # the whole of it
    ("GET", f"{V1}/loans"),
    ("GET", f"{V1}/loans/{{loan}}"),
    ("GET", f"{V1}/loans/{{loan}}/manifest"),
    ("GET", f"{V1}/loans/{{loan}}/statement"),
    ("GET", f"{V1}/loans/{{loan}}/notices"),
    ("GET", f"{V1}/sessions"),
    ("GET", f"{V1}/leases"),
    ("GET", f"{V1}/requests"),
    ("POST", f"{V1}/requests"),
}


class Two:
    """A custodian of two loans, and a borrower of the first."""

    def __init__(self, made: House) -> None:
        self.house = made
        self.app = admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000")
        self.mine = made.lent.loan.loan
        self.other = made.app.loans.create(
            name="other",
            model=made.lent.loan.model,
            policy=made.app.folder.policy.read_text(),
            terms=LoanTerms(),
            credits=7,
            actor="test",
        ).row.loan
        self.admin = self.client(made.admin_token)
        came = self.admin.post(f"{V1}/borrowers", json={"loan": self.mine, "note": "Ada"}).json()
        self.borrower, self.token = came["borrower"]["borrower"], came["token"]
        self.client_ = self.client(self.token)

    def client(self, token: str) -> TestClient:
        return TestClient(
            self.app,
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {token}"},
        )

    def operations(self) -> list[tuple[str, str]]:
        document = self.admin.get("/openapi.json").json()
        return [(method.upper(), path) for path, of in document["paths"].items() for method in of]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    with house(tmp_path_factory.mktemp("two")) as made:
        yield Two(made)


def filled(path: str, loan: str) -> str:
    return re.sub(r"\{\w+\}", "x", path.replace("{loan}", loan))


def test_every_route_of_the_description_but_its_own_answers_403(two: Two) -> None:
    operations = two.operations()
    assert len(operations) > 30
    assert set(operations) >= MAY
    before = two.house.events()
    closed = [one for one in operations if one not in MAY]
    for method, path in [*closed, ("GET", "/openapi.json")]:
        for body in ({}, {"loan": two.mine, "credits": 5, "number_inferences": "5"}):
            answer = two.client_.request(
                method, filled(path, two.mine), json=body, params={"loan": two.mine}
            )
            assert answer.status_code == 403, (method, path)
            assert answer.json()["reasons"][0]["code"] == "borrower.route"
    assert two.client_.get("/metrics").status_code in (401, 403)
    assert two.house.events() == before


def test_another_loan_is_not_found_by_path_query_or_body(two: Two) -> None:
    before = two.house.events()
    for method, path in MAY:
        if "{loan}" in path:
            answer = two.client_.request(method, filled(path, two.other))
            assert answer.status_code == 404, path
        for query in (
            f"loan={two.other}",
            f"loan={two.mine}&loan={two.other}",
            f"loan={two.other}&loan={two.mine}",
            f"lo%61n={two.other}",
            "loan=",
        ):
            answer = two.client_.request(
                method, f"{filled(path, two.mine)}?{query}", json={"credits": 1}
            )
            assert answer.status_code == 404, (path, query)
    answer = two.client_.post(f"{V1}/requests", json={"credits": 1, "loan": two.other})
    assert answer.status_code == 400
    assert two.house.events() == before


def test_it_reads_its_own_loan_and_nothing_of_the_other(two: Two) -> None:
    (loan,) = two.client_.get(f"{V1}/loans").json()
    assert loan["loan"] == two.mine
    assert {"account", "exposure", "terms", "state"} <= set(loan)
    assert two.client_.get(f"{V1}/loans/{two.mine}").json() == loan
    for path in ("sessions", "leases", "requests"):
        answer = two.client_.get(f"{V1}/{path}")
        assert answer.status_code == 200
        assert two.other not in answer.text
    assert two.client_.get(f"{V1}/loans/{two.mine}/manifest").status_code == 200
    period = {"begin": "2026-01-01T00:00:00Z", "end": "2027-01-01T00:00:00Z"}
    statement = two.client_.get(f"{V1}/loans/{two.mine}/statement", params=period)
    assert statement.status_code == 200, statement.text
    (notice,) = two.client_.get(f"{V1}/loans/{two.mine}/notices").json()
    assert notice["seen"] is None
    signed = decode(json.dumps(notice["notice"]), Signed)
    said = open_signed(
        signed, GrantNotice, public_key=two.house.app.key.public_key, label=Label.GRANT_NOTICE
    )
    assert (said.loan, said.granted) == (two.mine, 100)
    assert two.client_.get("/log/checkpoint").status_code in (200, 404)  # everybody's


def test_it_asks_and_a_person_decides_in_the_same_list(two: Two) -> None:
    asked = two.client_.post(
        f"{V1}/requests", json={"credits": 5, "reason": "the\x1b[31m month\nend"}
    )
    assert asked.status_code == 200, asked.text
    request = asked.json()
    assert (request["consumer"], request["borrower"]) == (None, two.borrower)
    assert "\x1b" not in request["reason"]
    again = two.client_.post(f"{V1}/requests", json={"credits": 9}).json()
    assert again["request"] == request["request"]  # one at a time
    assert request in two.admin.get(f"{V1}/requests").json()
    before = two.admin.get(f"{V1}/loans/{two.mine}").json()["account"]
    for method in ("approve", "deny"):  # not by itself
        path = f"{V1}/requests/{request['request']}/{method}"
        assert two.client_.post(path, json={}).status_code == 403
    done = two.admin.post(
        f"{V1}/requests/{request['request']}/approve", json={"credits": 3, "reason": "three"}
    ).json()
    assert (done["state"], done["granted"]) == ("approved", 3)
    after = two.admin.get(f"{V1}/loans/{two.mine}").json()["account"]
    assert (after["granted"], after["left"]) == (before["granted"] + 3, before["left"] + 3)
    (seen,) = two.client_.get(f"{V1}/requests").json()
    assert (seen["state"], seen["decision_reason"]) == ("approved", "three")
    second = two.client_.post(f"{V1}/requests", json={"credits": 2}).json()
    denied = two.admin.post(f"{V1}/requests/{second['request']}/deny", json={"reason": "no"})
    assert denied.json()["state"] == "denied"
    assert two.admin.get(f"{V1}/loans/{two.mine}").json()["account"] == after


def test_the_admin_does_not_ask_itself(two: Two) -> None:
    assert two.admin.post(f"{V1}/requests", json={"credits": 5}).status_code == 403


def test_a_revoked_token_opens_nothing_and_stays_in_the_list(two: Two) -> None:
    made = two.admin.post(f"{V1}/borrowers", json={"loan": two.mine}).json()
    client, name = two.client(made["token"]), made["borrower"]["borrower"]
    assert client.get(f"{V1}/loans").status_code == 200
    ended = two.admin.post(f"{V1}/borrowers/{name}/revoke")
    assert ended.json()["revoked"] is not None
    for method, path in MAY:
        answer = client.request(method, filled(path, two.mine), json={"credits": 1})
        assert answer.status_code == 401
    assert two.admin.post(f"{V1}/borrowers/{name}/revoke").status_code == 409
    assert two.admin.post(f"{V1}/borrowers/nobody/revoke").status_code == 404
    listed = two.admin.get(f"{V1}/borrowers", params={"loan": two.mine}).json()
    assert {each["borrower"]: each["revoked"] is None for each in listed} == {
        two.borrower: True,
        name: False,
    }
    assert two.admin.get(f"{V1}/borrowers", params={"loan": two.other}).json() == []


def test_the_token_is_not_in_the_ledger_nor_in_its_events(two: Two) -> None:
    assert two.token.startswith("agt-borrower_")
    connection = sqlite3.connect(two.house.app.folder.ledger)
    try:
        text = "\n".join(connection.iterdump())
    finally:
        connection.close()
    assert two.token not in text


def test_a_page_that_rebinds_its_name_is_refused_with_a_borrowers_token_too(two: Two) -> None:
    answer = two.client_.get(f"{V1}/loans", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    assert answer.json()["reasons"][0]["code"] == "admin.host"


# --- over both stores --------------------------------------------------------------------------


@pytest.fixture
def borrowers(ledger: Bench) -> Borrowers:
    return Borrowers(ledger=ledger.ledger)


def test_a_request_that_was_kept_by_a_failing_disk_is_found_again(
    ledger: Bench, borrowers: Borrowers
) -> None:
    loan = ledger.lend(10).loan
    row, token = borrowers.create(loan, note="n", actor="test")
    assert borrowers.find(["wrong", token]) == row
    for how in ("lost", "kept"):
        ledger.store.next = how
        with pytest.raises(UnavailableError):
            borrowers.ask(row, 5, reason="r")
    request = borrowers.ask(row, 5, reason="r")
    with ledger.ledger.read() as tx:
        assert [one.request for one in tx.requests_of_loan(loan, 10)] == [request.request]
    assert ledger.kinds().count("request.opened") == 1
    decided = ledger.grants.approve(request.request, actor="test", reason="why not")
    assert decided.state is RequestState.APPROVED
    assert ledger.loan(loan).account.granted == 15
    ledger.reopen()
    with ledger.ledger.read() as tx:
        assert tx.request(request.request) == decided


def test_what_cannot_be_asked_for_is_refused(ledger: Bench, borrowers: Borrowers) -> None:
    loan = ledger.lend(10).loan
    row, _ = borrowers.create(loan, note="", actor="test")
    for credits in (0, -1, 1 << 50):
        with pytest.raises(MalformedError):
            borrowers.ask(row, credits, reason="")
    ledger.loans.stop(loan, reason="stop", actor="test")
    with pytest.raises(ConflictError):
        borrowers.ask(row, 5, reason="")
    with pytest.raises(UnauthenticatedError):
        borrowers.find(["agt-borrower_x", ""])


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE requests SET consumer = NULL, session = NULL",
        "UPDATE requests SET borrower = NULL",
        "INSERT INTO requests SELECT 'again', loan, consumer, session, borrower, credits, reason,"
        " state, granted, decision_reason, created_us, decided_us FROM requests"
        " WHERE consumer IS NULL",
        "UPDATE borrower_tokens SET token_sha256 = NULL",
    ],
)
def test_the_database_keeps_requests_apart(
    ledger: Bench, borrowers: Borrowers, statement: str
) -> None:
    loan = ledger.lend(1).loan
    row, _ = borrowers.create(loan, note="", actor="test")
    borrowers.ask(row, 5, reason="")
    from aigovtool.wire.control import MoreWanted

    consumer, enclave = ledger.consumer(loan), ledger.enclave(loan)
    ledger.grants.want_more(
        enclave.session, MoreWanted(consumer=consumer, credits=1, reason="", waiting=1)
    )
    before = ledger.dump()
    with pytest.raises(REFUSALS):
        ledger.run_sql(statement)
    assert ledger.dump() == before


def test_requests_of_before_are_kept_by_the_migration(tmp_path: Path) -> None:
    from aigovtool.custodian.store.queries import load_migrations

    connection = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    migrations = load_migrations()
    number = next(one.number for one in migrations if one.name.endswith("_borrowers.sql"))
    for one in migrations[: number - 1]:
        connection.executescript(one.sql)
    connection.execute(
        "INSERT INTO requests (request, loan, consumer, session, credits, reason, state, granted,"
        " decision_reason, created_us, decided_us)"
        " VALUES ('r', 'l', 'c', 's', 5, 'why', 'denied', 0, 'no', 1, 2)"
    )
    connection.executescript(migrations[number - 1].sql)
    kept: list[Any] = connection.execute("SELECT * FROM requests").fetchall()
    connection.close()
    assert kept == [("r", "l", "c", "s", None, 5, "why", "denied", 0, "no", 1, 2)]
