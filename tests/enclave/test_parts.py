"""The smaller parts: roster, replays, rate limit, limits, hardening, attestation."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.attestation.binding import AskedBy, EnclaveKeys, report_data
from aigovtool.crypto.labels import Label
from aigovtool.enclave.api.http import Reply
from aigovtool.enclave.api.pace import MAX_PEERS, PeerPace, TokenBucket
from aigovtool.enclave.api.replay import Replays
from aigovtool.enclave.config import EnclaveConfig, Limits
from aigovtool.enclave.roster import Roster
from aigovtool.errors import (
    BlockedError,
    ConfigurationError,
    ConflictError,
    KeyReusedError,
    MalformedError,
    UnauthenticatedError,
    UnavailableError,
)
from aigovtool.ids import ConsumerId, sha256
from aigovtool.wire.codec import open_signed
from aigovtool.wire.enrolment import AttestationDocument, RosterEntry, SessionStatement

from .conftest import RunningEnclave, running_enclave
from .custodian import LOAN, REPORT_DATA, FakeCustodian

ALICE, BOB = ConsumerId("con_alice"), ConsumerId("con_bob")


def entry(consumer: ConsumerId, key: str, *, blocked: bool = False) -> RosterEntry:
    return RosterEntry(
        consumer=consumer,
        api_key_sha256=sha256(key.encode()),
        blocked=blocked,
        budgeted=False,
        left=None,
    )


def test_a_key_names_its_consumer() -> None:
    roster = Roster([entry(ALICE, "a"), entry(BOB, "b", blocked=True)])
    assert roster.authenticate(b"Bearer a") == ALICE
    assert roster.authenticate(b"bearer  a ") == ALICE
    with pytest.raises(BlockedError):
        roster.authenticate(b"Bearer b")
    assert roster.admits(ALICE)
    assert not roster.admits(BOB)


@given(st.none() | st.binary(max_size=1000))
def test_nothing_else_is_a_key(authorization: bytes | None) -> None:
    roster = Roster([entry(ALICE, "a-key-that-nobody-guesses")])
    with pytest.raises(UnauthenticatedError) as caught:
        roster.authenticate(authorization)
    if authorization and len(authorization) > 12:
        assert authorization.decode("latin-1") not in str(caught.value)


async def _reply(text: bytes, *, charged: bool = True) -> tuple[Reply, bool]:
    await asyncio.sleep(0)
    return Reply(200, (), (text,)), charged


class Hands:
    """A clock that stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_replays(clock: Hands | None = None, *, max_bytes: int = 1000) -> Replays:
    return Replays(keep_s=10, max_bytes=max_bytes, now_s=clock or Hands())


async def test_an_answer_is_forgotten_after_its_time() -> None:
    clock = Hands()
    replays = make_replays(clock)
    first = await replays.once(ALICE, b"k", b"body", lambda: _reply(b"one"))
    clock.now_s = 9.0
    again = await replays.once(ALICE, b"k", b"body", lambda: _reply(b"two"))
    clock.now_s = 10.0
    later = await replays.once(ALICE, b"k", b"body", lambda: _reply(b"three"))
    assert [first.chunks, again.chunks, later.chunks] == [(b"one",), (b"one",), (b"three",)]
    assert [(b"aigovtool-replayed", b"1") in one.headers for one in (first, again, later)] == [
        False,
        True,
        False,
    ]


async def test_the_time_begins_when_the_answer_is_there() -> None:
    clock = Hands()
    replays = make_replays(clock)

    async def slowly() -> tuple[Reply, bool]:
        clock.now_s = 600.0  # it waited for credits as long as the window, and more
        return await _reply(b"one")

    await replays.once(ALICE, b"k", b"", slowly)
    clock.now_s = 609.0
    again = await replays.once(ALICE, b"k", b"", lambda: _reply(b"charged again"))
    assert again.chunks == (b"one",)


async def test_a_key_is_its_consumers_own_and_stands_for_one_body() -> None:
    replays = make_replays()
    await replays.once(ALICE, b"k", b"one", lambda: _reply(b"alice"))
    with pytest.raises(KeyReusedError):
        await replays.once(ALICE, b"k", b"two", lambda: _reply(b"never"))
    assert (await replays.once(BOB, b"k", b"two", lambda: _reply(b"bob"))).chunks == (b"bob",)


async def test_a_retry_of_one_that_failed_uncharged_takes_its_place() -> None:
    replays, release = make_replays(), asyncio.Event()

    async def fails() -> tuple[Reply, bool]:
        await release.wait()
        raise UnavailableError("no lease in time")

    first = asyncio.create_task(replays.once(ALICE, b"k", b"", fails))
    await asyncio.sleep(0)
    others = [
        asyncio.create_task(replays.once(ALICE, b"k", b"", lambda i=i: _reply(b"%d" % i)))
        for i in range(3)
    ]
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(UnavailableError):
        await first
    assert len({(await one).chunks for one in others}) == 1


async def test_one_whose_task_is_cancelled_in_its_charge_is_not_charged_again() -> None:
    replays = make_replays()

    async def cut() -> tuple[Reply, bool]:
        await asyncio.Event().wait()
        raise AssertionError

    first = asyncio.create_task(replays.once(ALICE, b"k", b"", cut))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    with pytest.raises(ConflictError, match="no longer kept"):
        await replays.once(ALICE, b"k", b"", lambda: _reply(b"never"))


async def test_an_answer_that_was_let_go_for_room_is_not_computed_again() -> None:
    replays = make_replays()
    await replays.once(ALICE, b"old", b"", lambda: _reply(b"x" * 800))
    await replays.once(ALICE, b"new", b"", lambda: _reply(b"y" * 800))
    with pytest.raises(ConflictError, match="no longer kept"):
        await replays.once(ALICE, b"old", b"", lambda: _reply(b"never"))
    kept = await replays.once(ALICE, b"new", b"", lambda: _reply(b"never"))
    assert kept.chunks == (b"y" * 800,)


async def test_ones_own_answers_make_room_before_those_of_others() -> None:
    replays = make_replays()
    await replays.once(BOB, b"k", b"", lambda: _reply(b"b" * 400))
    for number in range(20):
        await replays.once(ALICE, b"%d" % number, b"", lambda: _reply(b"a" * 400))
    kept = await replays.once(BOB, b"k", b"", lambda: _reply(b"never"))
    assert kept.chunks == (b"b" * 400,)


async def test_one_consumer_cannot_have_all_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aigovtool.enclave.api.replay.MAX_REMEMBERED_EACH", 3)
    clock = Hands()
    replays = make_replays(clock)
    for number in range(3):
        await replays.once(ALICE, b"%d" % number, b"", lambda: _reply(b"a"))
    with pytest.raises(UnavailableError):
        await replays.once(ALICE, b"3", b"", lambda: _reply(b"never"))
    await replays.once(BOB, b"k", b"", lambda: _reply(b"b"))
    clock.now_s = 10.0
    await replays.once(ALICE, b"3", b"", lambda: _reply(b"a"))


async def test_a_key_is_bounded() -> None:
    replays = make_replays()
    for key in (b"", b"k" * 256):
        with pytest.raises(MalformedError):
            await replays.once(ALICE, key, b"", lambda: _reply(b"never"))


@given(
    times=st.lists(st.floats(0, 1), max_size=200),
    per_s=st.floats(0.5, 50),
    burst=st.integers(1, 20),
)
def test_a_bucket_never_gives_more_than_its_rate(
    times: list[float], per_s: float, burst: int
) -> None:
    bucket, now_s, given_out = TokenBucket(per_s=per_s, burst=burst, now_s=0.0), 0.0, 0
    for step in times:
        now_s += step
        after_s = bucket.take(now_s)
        given_out += after_s == 0
        assert after_s <= 1 / per_s
        assert given_out <= burst + per_s * now_s + 1e-6


def test_one_peer_leaves_evidence_for_the_others() -> None:
    pace = PeerPace(per_s=1.0, burst=8, now_s=0.0)
    greedy = [pace.take("192.0.2.1", 0.0) == 0 for _ in range(100)]
    assert sum(greedy) == 4
    assert [pace.take("192.0.2.2", 0.0) == 0 for _ in range(8)].count(True) == 4
    assert pace.take("192.0.2.3", 0.0) == 1.0  # all together: the next one in a second
    assert pace.take("192.0.2.3", 1.0) == 0


def test_a_peer_with_a_whole_network_is_one_peer() -> None:
    pace = PeerPace(per_s=1.0, burst=8, now_s=0.0)
    served = [pace.take(f"2001:db8:1:2::{number:x}", 0.0) == 0 for number in range(100)]
    assert sum(served) == 4
    assert pace.take("2001:db8:1:3::1", 0.0) == 0
    mapped = [pace.take(name, 9.0) == 0 for name in ("::ffff:192.0.2.1", "192.0.2.1") * 4]
    assert sum(mapped) == 4
    for number in range(MAX_PEERS + 10):  # what is remembered of peers is bounded
        pace.take(f"198.51.{number // 256}.{number % 256}", 0.0)
    assert len(pace._peers) <= MAX_PEERS


def test_a_limit_of_nothing_is_refused() -> None:
    for name in Limits.__struct_fields__:
        with pytest.raises(ConfigurationError, match=name):
            Limits(**{name: 0})


@pytest.mark.parametrize("listen", ["", "host", ":9924", "host:", "host:x", "host:70000"])
def test_a_bad_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigurationError):
        EnclaveConfig(listen=listen).address()


def test_addresses() -> None:
    assert EnclaveConfig(listen="127.0.0.1:0").address() == ("127.0.0.1", 0)
    assert EnclaveConfig(listen="[::1]:9924").address() == ("::1", 9924)


def test_hardening_ends_core_dumps_and_reading_by_others() -> None:
    program = (
        "import ctypes, resource\n"
        "from aigovtool.enclave.hardening import harden\n"
        "for missing in harden(): print('missing:', missing)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"(0, 0) 0"


async def test_the_attestation_document(enclave: RunningEnclave) -> None:
    custodian, nonce = enclave.custodian, bytes(range(32))
    async with enclave.http.get(f"/.well-known/attestation?nonce={nonce.hex()}") as answer:
        assert answer.status == 200
        body = await answer.read()
    import msgspec

    document = msgspec.json.decode(body, type=AttestationDocument)
    keys = EnclaveKeys(
        tls_spki_sha256=document.keys.tls_spki_sha256,
        signing_key=document.keys.signing_key,
        hpke_key=document.keys.hpke_key,
    )
    assert document.evidence.documents[REPORT_DATA] == report_data(
        AskedBy.CONSUMER,
        nonce=nonce,
        keys=keys,
        custodian_key=custodian.key.public_key,
        loan_id=LOAN,
    )
    statement = open_signed(
        document.statement,
        SessionStatement,
        public_key=custodian.key.public_key,
        label=Label.SESSION_STATEMENT,
    )
    (session,) = custodian.sessions.values()
    assert statement.lease in session.leases  # asked for, so that there is one to be seen
    assert document.manifest == custodian.model.verified.signed
    assert (document.nonce, document.loan) == (nonce, LOAN)


async def test_attestation_when_nothing_is_left_names_no_lease(enclave: RunningEnclave) -> None:
    enclave.custodian.granted = enclave.custodian.left = 0
    async with asyncio.timeout(30):
        status, document, _ = await enclave.get("/.well-known/attestation?nonce=" + "00" * 32)
    assert status == 200
    assert document["statement"]


async def test_a_nonce_is_32_bytes_of_hex(enclave: RunningEnclave) -> None:
    for nonce in ("", "?nonce=", "?nonce=00", "?nonce=" + "zz" * 32, "?nonce=" + "00" * 33, "?%ff"):
        status, answer, _ = await enclave.get("/.well-known/attestation" + nonce)
        assert (status, answer["kind"]) == (400, "malformed"), nonce


async def test_evidence_is_rate_limited(custodian: FakeCustodian) -> None:
    limits = Limits(attestations_per_s=0.2, attestation_burst=4)  # half of it for one address
    async with running_enclave(custodian, limits=limits) as enclave:
        path = "/.well-known/attestation?nonce=" + "00" * 32
        statuses = [(await enclave.get(path))[0] for _ in range(3)]
        assert statuses == [200, 200, 503]
        assert 1 <= int((await enclave.get(path))[2]["Retry-After"]) <= 10
        assert (await enclave.infer())[0] == 200


async def test_while_enrolling_it_listens_and_says_so(custodian: FakeCustodian) -> None:
    custodian.state = "stopped"
    async with running_enclave(custodian, wait_ready=False) as enclave:
        async with asyncio.timeout(30):
            while (await enclave.get("/v2/health/ready"))[1].get("kind") != "loan.not_active":
                pass
        assert (await enclave.get("/v2/health/live"))[0] == 200
        assert (await enclave.infer())[0] == 503
        custodian.state = "active"
        async with asyncio.timeout(30):
            await enclave.ready.wait()
        assert (await enclave.infer())[0] == 200
