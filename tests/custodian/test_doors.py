"""Both doors over HTTP: nothing is open without a token, and what is open says no precisely."""

from __future__ import annotations

import base64
import re

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse

from aigovtool.custodian.api import views
from aigovtool.custodian.api.admin import admin_app
from aigovtool.custodian.api.bodies import Span, parse_range
from aigovtool.custodian.api.enclaves import MAX_CHALLENGE_BYTES, enclave_app
from aigovtool.custodian.data import Address, ServerConfig
from aigovtool.errors import ConfigurationError
from aigovtool.wire.headers import BODY_PATH, CHALLENGE_PATH, CONTROL_PATH, ENROL_PATH
from aigovtool.wire.log import LOG_PATH
from tests.custodian.house import House, house

NAMES = frozenset({"localhost", "127.0.0.1"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with house(tmp_path_factory.mktemp("doors")) as custodian:
        yield custodian


def client_of(app: Starlette, **headers: str) -> TestClient:
    return TestClient(app, base_url="http://localhost", headers=headers)


@pytest.fixture
def admin(made: House) -> TestClient:
    app = admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000")
    return client_of(app, Authorization=f"Bearer {made.admin_token}")


@pytest.fixture
def enclave(made: House) -> TestClient:
    return client_of(enclave_app(made.app), Authorization=f"Bearer {made.ticket.token}")


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "x", path)


WRONG = [
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer " + "a" * 5000},
    {"Authorization": "Basic " + base64.b64encode(b"admin:wrong").decode()},
    {"Authorization": "Basic \xff"},
    {"Authorization": "Digest x"},
]


@pytest.mark.parametrize("headers", WRONG, ids=range(len(WRONG)))
def test_every_admin_route_is_closed_without_the_token(
    made: House, headers: dict[str, str]
) -> None:
    app = admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000")
    client = client_of(app)
    routes = [
        route
        for route in app.routes
        if isinstance(route, Route) and not route.path.startswith(LOG_PATH)
    ]
    assert len(routes) > 20
    before = made.events()
    for route in routes:
        for method in route.methods or ():
            sent = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.request(method, filled(route.path), headers=sent)  # type: ignore[arg-type]
            assert answer.status_code == 401, (method, route.path)
            if method != "HEAD":
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["error"]
    assert made.events() == before


@pytest.mark.parametrize("token", [None, "wrong", "admin"])
def test_every_enclave_route_is_closed_without_a_tickets_token(
    made: House, token: str | None
) -> None:
    app = enclave_app(made.app)
    if token == "admin":
        token = made.admin_token  # of the other door
    client = client_of(app, **({} if token is None else {"Authorization": f"Bearer {token}"}))
    paths = set()
    for route in app.routes:
        assert isinstance(route, Route | WebSocketRoute)
        paths.add(route.path)
        if isinstance(route, WebSocketRoute):
            with (
                pytest.raises(WebSocketDenialResponse) as caught,
                client.websocket_connect(route.path),
            ):
                pass
            assert caught.value.status_code == 401
        else:
            for method in route.methods or ():
                assert client.request(method, filled(route.path)).status_code == 401
    log = LOG_PATH + "/{path:path}"
    assert paths == {CHALLENGE_PATH, ENROL_PATH, BODY_PATH, CONTROL_PATH, log}


def test_the_token_opens_as_bearer_and_as_curl_sends_it(made: House, admin: TestClient) -> None:
    assert admin.get("/api/v1/loans").status_code == 200
    for pair in (f"admin:{made.admin_token}", f"{made.admin_token}:"):
        basic = "Basic " + base64.b64encode(pair.encode()).decode()
        answer = admin.get("/api/v1/loans", headers={"Authorization": basic})
        assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:6000", "", "127.0.0.1.evil", "["])
def test_a_page_that_rebinds_its_name_to_loopback_is_refused(admin: TestClient, host: str) -> None:
    answer = admin.post(
        "/supply_inferences", data={"number_inferences": "5"}, headers={"Host": host}
    )
    assert answer.status_code == 403
    assert answer.json()["reasons"][0]["code"] == "admin.host"


def test_a_cross_site_request_is_refused_whatever_it_carries(admin: TestClient) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1"):
        answer = admin.post(
            "/supply_inferences", data={"number_inferences": "5"}, headers={"Origin": origin}
        )
        assert answer.status_code == 403


def test_the_originals_calls_work(made: House, admin: TestClient) -> None:
    before = admin.get("/request_consumption").json()
    answer = admin.post("/supply_inferences", data={"number_inferences": "7"})
    assert answer.status_code == 200
    assert answer.json()["inferences"] == "7"
    after = admin.get("/request_consumption").json()
    assert int(after["inferences"]) == int(before["inferences"]) + 7
    assert after["granted"] == before["granted"] + 7


@pytest.mark.parametrize("text", ["", "0", "-5", "1.5", "1e3", "nan", "9" * 30, "٣"])
def test_nonsense_is_not_granted(made: House, admin: TestClient, text: str) -> None:
    before = admin.get("/request_consumption").json()
    answer = admin.post("/supply_inferences", data={"number_inferences": text})
    assert answer.status_code == 400
    assert admin.get("/request_consumption").json() == before


def test_a_grant_sent_twice_with_one_key_is_made_once(admin: TestClient) -> None:
    before = admin.get("/request_consumption").json()["granted"]
    for _ in range(2):
        answer = admin.post(
            "/api/v1/grants", json={"credits": 3}, headers={"Idempotency-Key": "abc"}
        )
        assert answer.status_code == 200
    assert admin.get("/request_consumption").json()["granted"] == before + 3


def test_a_body_that_is_too_large_or_not_json_is_refused(admin: TestClient) -> None:
    assert admin.post("/api/v1/grants", content=b"x" * (3 << 20)).status_code == 413
    assert admin.post("/api/v1/grants", content=b"{").status_code == 400
    assert admin.post("/api/v1/grants", json={"credits": 1, "typo": 1}).status_code == 400
    assert admin.post("/api/v1/grants", json={"credits": -1}).status_code == 400
    assert admin.get("/api/v1/nothing").status_code == 404
    assert admin.delete("/api/v1/loans").status_code == 405


def test_loans_and_consumers_are_made_shown_and_changed(made: House, admin: TestClient) -> None:
    model = admin.get("/api/v1/models").json()[0]
    answer = admin.post(
        "/api/v1/loans",
        json={"name": "second", "model": model["model"], "credits": 9, "max_enclaves": 2},
    )
    loan = msgspec.convert(answer.json(), views.MadeLoan)
    assert loan.loan.account.left == 9
    assert loan.loan.loan in loan.ticket
    assert made.ticket.custodian_key in loan.manifest
    where = f"/api/v1/loans/{loan.loan.loan}"
    assert admin.post("/api/v1/grants", json={"credits": 1}).status_code == 409  # which one?
    key = admin.post("/api/v1/consumers", json={"name": "a", "loan": loan.loan.loan, "budget": 4})
    consumer = key.json()["consumer"]["consumer"]
    assert key.json()["api_key"].startswith("agt-key_")
    for _ in range(2):
        blocked = admin.post(f"/api/v1/consumers/{consumer}/block", json={"reason": "x"})
        assert blocked.json()["blocked"] is True
    assert admin.post(f"/api/v1/consumers/{consumer}/unblock").json()["blocked"] is False
    assert admin.post(f"{where}/stop", json={"reason": "r"}).json()["state"] == "stopped"
    assert admin.post(f"{where}/resume").json()["state"] == "active"
    assert "[custodian]" in admin.get(f"{where}/manifest").json()["manifest"]
    assert admin.post(f"{where}/ticket").json()["ticket"] != loan.ticket
    assert admin.get("/api/v1/consumption", params={"loan": loan.loan.loan}).json()[0]["consumers"]
    assert admin.post(f"{where}/close").json()["state"] == "closed"
    assert admin.post(f"{where}/resume").status_code == 409
    assert admin.get("/api/v1/loans/loan_none").status_code == 404
    for path in ("sessions", "leases", "grants", "requests"):
        assert isinstance(admin.get(f"/api/v1/{path}").json(), list)


def test_no_secret_is_in_any_answer_or_event(made: House, admin: TestClient) -> None:
    secrets = [made.ticket.token, made.admin_token, made.app.folder.consumer_key.read_text()]
    for path in ("loans", "consumers", "events", "consumption", "models", "grants"):
        text = admin.get(f"/api/v1/{path}").text
        assert not [secret for secret in secrets if secret.strip() in text]


def test_events_are_paged_by_their_number(admin: TestClient) -> None:
    everything = admin.get("/api/v1/events").json()
    assert [one["number"] for one in everything] == sorted(one["number"] for one in everything)
    first = admin.get("/api/v1/events", params={"after": 0, "limit": 2}).json()
    assert first == everything[:2]
    assert admin.get("/api/v1/events", params={"limit": 1}).json() == everything[-1:]
    for query in ({"limit": "0"}, {"limit": "x"}, {"after": "-1"}, {"limit": "99999"}):
        assert admin.get("/api/v1/events", params=query).status_code == 400


def test_openapi_describes_every_route(made: House, admin: TestClient) -> None:
    document = admin.get("/openapi.json").json()
    app = admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000")
    served = {route.path for route in app.routes if isinstance(route, Route)}
    assert served == {*document["paths"], "/openapi.json", "/metrics", LOG_PATH + "/{path:path}"}
    text = admin.get("/openapi.json").text
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "custodian.example"])
def test_the_admin_api_is_not_put_on_a_network_in_the_clear(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ServerConfig(
            listen=Address("127.0.0.1", 0), advertise=None, admin_listen=Address(host, 6000)
        )
    assert caught.value.reasons[0].code == "admin.tls"


@pytest.mark.parametrize("text", ["", "7000", ":7000", "host:", "host:x", "host:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Address.parse(text, option="--listen")


# --- sealed bodies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-", Span(0, 100)),
        ("bytes=10-19", Span(10, 20)),
        ("bytes=90-500", Span(90, 100)),
        ("bytes=-10", Span(90, 100)),
        ("bytes=-500", Span(0, 100)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=x-", None),
        ("bytes=0-\n", None),
    ],
)
def test_ranges_are_read_as_rfc_9110_says(header: str | None, span: Span | None) -> None:
    assert parse_range(header, 100) == span


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_outside_the_body_is_not_satisfiable(header: str) -> None:
    with pytest.raises(ValueError, match="no byte"):
        parse_range(header, 100)


def test_a_body_comes_whole_in_parts_and_resumed(made: House, enclave: TestClient) -> None:
    path = BODY_PATH.format(digest=made.lent.model.digest.hex())
    whole = enclave.get(path)
    assert whole.status_code == 200
    assert whole.content == made.app.folder.body(made.lent.model.digest).read_bytes()
    size, etag = len(whole.content), whole.headers["etag"]
    assert etag == f'"{made.lent.model.body_sha256.hex()}"'
    part = enclave.get(path, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert (part.status_code, part.content) == (206, whole.content[1000:])
    assert part.headers["content-range"] == f"bytes 1000-{size - 1}/{size}"
    other = enclave.get(path, headers={"Range": "bytes=1000-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, whole.content)
    none = enclave.get(path, headers={"Range": f"bytes={size}-"})
    assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{size}")
    head = enclave.head(path)
    assert (head.status_code, int(head.headers["content-length"])) == (200, size)


@pytest.mark.parametrize("digest", ["00" * 32, "..%2F..%2Fmaster.key", "x", "AB" * 32])
def test_no_other_file_is_given_out(enclave: TestClient, digest: str) -> None:
    assert enclave.get(f"/enclave/v1/models/{digest}/body").status_code == 404


def test_enclave_messages_are_strict_and_bounded(made: House, enclave: TestClient) -> None:
    assert enclave.post(CHALLENGE_PATH, content=b"{").status_code == 400
    assert enclave.post(CHALLENGE_PATH, content=b" " * (MAX_CHALLENGE_BYTES + 1)).status_code == 413
    good = {"loan": made.ticket.loan}
    assert enclave.post(CHALLENGE_PATH, json={**good, "more": 1}).status_code == 400
    assert enclave.post(CHALLENGE_PATH, json={"loan": "loan_other"}).status_code == 404
    answer = enclave.post(CHALLENGE_PATH, json=good)
    assert answer.status_code == 200
    assert len(base64.b64decode(answer.json()["nonce"])) == 32
    assert enclave.post(ENROL_PATH, json=good).status_code == 400


def test_the_log_is_open_to_everybody_and_is_the_only_thing(made: House) -> None:
    made.app.logbook.run()
    client = client_of(admin_app(made.app, names=NAMES, enclave_address="127.0.0.1:7000"))
    size = made.app.logbook.status().size
    for path, kind, caching in (
        ("checkpoint", "text/plain; charset=utf-8", "no-cache"),
        ("log-key.json", "application/json", "public, max-age=31536000, immutable"),
        (f"tile/0/000.p/{size}", "application/octet-stream", "public, max-age=31536000, immutable"),
        (f"tile/entries/000.p/{size}", "application/octet-stream", None),
    ):
        answer = client.get(f"{LOG_PATH}/{path}")
        assert answer.content == (made.app.folder.log / path).read_bytes()
        assert answer.headers["content-type"] == kind
        assert caching in (None, answer.headers["cache-control"])
    for path in (
        "",
        "../master.key",
        "%2e%2e/master.key",
        "tile/0/../../../master.key",
        ".partial",
    ):
        assert client.get(f"{LOG_PATH}/{path}").status_code == 404
    assert client.post(f"{LOG_PATH}/checkpoint").status_code == 405
    # a page in a browser does not get it by rebinding its name
    assert client.get(f"{LOG_PATH}/checkpoint", headers={"Host": "evil.example"}).status_code == 403


def test_enclaves_read_the_log_with_their_ticket_only(made: House, enclave: TestClient) -> None:
    made.app.logbook.run()
    assert enclave.get(f"{LOG_PATH}/checkpoint").status_code == 200
    stranger = client_of(enclave_app(made.app), Authorization="Bearer wrong")
    assert stranger.get(f"{LOG_PATH}/checkpoint").status_code == 401
