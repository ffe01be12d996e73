"""Platforms that go out of date under live sessions, and evidence that should not be believed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigovtool.attestation.dcap.policy import TcbGrace
from aigovtool.attestation.dcap.tcb import TcbStatus
from aigovtool.attestation.policy import Policy, write_policy
from aigovtool.clock import SystemClock
from aigovtool.custodian.ageing import (
    ANSWER_WITHIN_S,
    DIVISORS,
    Step,
    allowance,
    is_due,
    is_overdue,
    step_at,
)
from aigovtool.custodian.api.views import session_view
from aigovtool.custodian.ledger import session_of, standing_of
from aigovtool.custodian.lifecycle import SessionState
from aigovtool.custodian.records import LoanTerms, Session, Standing
from aigovtool.custodian.store.base import Writing
from aigovtool.custodian.store.queries import load_migrations
from aigovtool.enclave.app import serve
from aigovtool.enclave.attester.simulated import SimulatedAttester
from aigovtool.enclave.config import EnclaveConfig
from aigovtool.enclave.progress import LoggedProgress
from aigovtool.errors import AppraisalError, RefusedError, UnavailableError, VerificationError
from aigovtool.ids import SessionId
from aigovtool.simulation.policy import simulated_policy
from aigovtool.wire.control import CreditsFreed, Lease, Reattest, ReattestWanted, SessionEnded
from aigovtool.wire.enrolment import ChallengeRequest, Documents
from tests.custodian.house import GENUINE, EnclaveSide, House, house, open_house
from tests.custodian.ledgers import Bench, FakeEnclave, SetClock, Told

LEVEL = datetime(2026, 1, 1, tzinfo=UTC)  # of the simulated platform's TCB levels
GRACE_DAYS = 400
ENDS = LEVEL + timedelta(days=GRACE_DAYS)
INTERVAL_S = 3600.0
OUT_OF_DATE = 2  # the newest SVN, of which the simulated platform has 1

moments = st.datetimes(
    min_value=datetime(2020, 1, 1),  # noqa: DTZ001  Hypothesis wants naive bounds
    max_value=datetime(2030, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def graced(since: datetime, ends: datetime) -> TcbGrace:
    return TcbGrace(
        status=TcbStatus.OUT_OF_DATE,
        expected=(TcbStatus.UP_TO_DATE,),
        short=("SGX component 1: 1 < 2",),
        since=since,
        ends=ends,
    )


# --- the pure steps ------------------------------------------------------------------------------


@given(moments, moments, moments, moments, st.floats(0, 3600), st.integers(1, 10**9))
def test_leases_never_grow_in_the_window_and_none_outlives_it(
    since: datetime, ends: datetime, one: datetime, other: datetime, lease_s: float, credits: int
) -> None:
    grace = graced(since, ends)
    earlier, later = (
        allowance(grace, now, lease_duration_s=lease_s, max_lease_credits=credits)
        for now in sorted((one, other))
    )
    for now, allowed in zip(sorted((one, other)), (earlier, later), strict=True):
        assert (allowed is None) == (now >= ends)
        if allowed is not None:
            assert 0 <= allowed.duration_s <= lease_s
            assert now + timedelta(seconds=allowed.duration_s) <= ends
            assert 1 <= allowed.max_credits <= credits
            assert (allowed.duration_s == 0) == (lease_s / DIVISORS[step_at(grace, now)] == 0)
    if later is not None:
        assert earlier is not None
        assert later.duration_s <= earlier.duration_s
        assert later.max_credits <= earlier.max_credits


@given(moments, moments)
def test_refusal_is_exactly_at_the_end(since: datetime, ends: datetime) -> None:
    instant = timedelta(microseconds=1)
    assert step_at(graced(since, ends), ends) is Step.REFUSED
    assert step_at(graced(since, ends), ends - instant) is not Step.REFUSED


@pytest.mark.parametrize(
    ("quarter", "before", "then"),
    [
        (1, Step.WARNED, Step.HALVED),
        (2, Step.HALVED, Step.QUARTERED),
        (3, Step.QUARTERED, Step.EIGHTH),
        (4, Step.EIGHTH, Step.REFUSED),
    ],
)
def test_each_quarter_of_the_window_halves(quarter: int, before: Step, then: Step) -> None:
    at = LEVEL + quarter * timedelta(days=GRACE_DAYS / 4)
    assert step_at(graced(LEVEL, ENDS), at - timedelta(microseconds=1)) is before
    assert step_at(graced(LEVEL, ENDS), at) is then


@given(moments)
def test_a_platform_in_order_does_not_age(now: datetime) -> None:
    allowed = allowance(None, now, lease_duration_s=5.0, max_lease_credits=10)
    assert allowed is not None
    assert (step_at(None, now), allowed.duration_s, allowed.max_credits) == (Step.FULL, 5.0, 10)


@given(moments, st.floats(0, 1e6), st.floats(0.001, 1e6))
def test_whoever_is_overdue_was_due_before(now: datetime, age_s: float, interval_s: float) -> None:
    appraised = now - timedelta(seconds=age_s)
    assert is_due(appraised, interval_s, now) or not is_overdue(appraised, interval_s, now)
    assert not is_due(appraised, 0, now)
    assert not is_overdue(appraised, 0, now)


# --- a session and its custodian -----------------------------------------------------------------


@dataclass
class Scene:
    """A custodian whose loan accepts out-of-date platforms by grace; time stands until moved."""

    made: House
    clock: SetClock
    told: Told
    token: str
    newest_svn: int = 1

    def enrol(self) -> FakeEnclave:
        side, enrolment = EnclaveSide.make(), self.made.app.enrolment
        asked = ChallengeRequest(loan=self.made.lent.loan.loan)
        nonce = enrolment.challenge(self.token, asked).nonce
        request = msgspec.structs.replace(
            self.made.request(nonce, side.keys, self.made.evidence_for(nonce, side.keys)),
            endorsements=self.endorsements(),
        )
        session = enrolment.enrol(self.token, request).session
        self.made.app.sessions.connect(session)
        return FakeEnclave(session, self.made.lent.loan.loan, side.signing)

    def endorsements(self) -> Documents:
        made = self.made.platform.make_endorsements(self.clock.now(), newest_svn=self.newest_svn)
        return Documents(tee="simulated", documents=dict(made.documents))

    def session(self, enclave: FakeEnclave) -> Session:
        with self.made.app.ledger.read() as tx:
            return session_of(tx, enclave.session)

    def standing(self, enclave: FakeEnclave) -> Standing:
        with self.made.app.ledger.read() as tx:
            return standing_of(tx, enclave.session)

    def asked(self, enclave: FakeEnclave) -> bytes:
        """Let the interval pass, and return the nonce that the session is asked to answer."""
        self.clock.forward(INTERVAL_S)
        self.made.app.reattestation.sweep()
        push = self.told.pushes[-1]
        assert isinstance(push.message, ReattestWanted)
        assert push.only == enclave.session
        assert push.message.nonce == self.standing(enclave).nonce
        return push.message.nonce

    def shows(self, enclave: FakeEnclave, nonce: bytes, **more: Any) -> Reattest:
        keys = more.pop("keys", self.session(enclave).keys)
        return Reattest(
            nonce=nonce,
            evidence=self.made.evidence_for(more.pop("made_for", nonce), keys, **more),
            endorsements=self.endorsements(),
        )

    def attest_again(self, enclave: FakeEnclave) -> None:
        shown = self.shows(enclave, self.asked(enclave))
        self.made.app.reattestation.answer(enclave.session, shown)

    def lease(self, enclave: FakeEnclave) -> Lease | None:
        return self.made.app.leasing.report(enclave.session, enclave.report(want=50)).lease

    def events(self, enclave: FakeEnclave, kind: str) -> list[dict[str, Any]]:
        with self.made.app.ledger.read() as tx:
            return [
                msgspec.json.decode(event.detail)
                for event in tx.events_after(0, None, 10_000)
                if (event.kind, event.session) == (kind, enclave.session)
            ]

    def is_refused(self, enclave: FakeEnclave, shown: Reattest) -> list[str]:
        """Show something that is refused, check all that must come of it, return why."""
        before = self.standing(enclave).appraised
        with pytest.raises((VerificationError, AppraisalError)) as caught:
            self.made.app.reattestation.answer(enclave.session, shown)
        assert self.session(enclave).state is SessionState.ENDED
        assert self.standing(enclave).appraised == before
        assert self.standing(enclave).nonce is None
        (refused,) = self.events(enclave, "reattestation.refused")
        reasons = [reason.code for reason in caught.value.reasons]
        assert [reason["code"] for reason in refused["reasons"]] == reasons
        last = self.told.pushes[-1]
        assert isinstance(last.message, SessionEnded)
        assert (last.only, last.ends) == (enclave.session, True)
        assert self.lease(enclave) is None
        return reasons


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock, told = SetClock(), Told()
    with house(tmp_path, clock=clock) as made:
        made.app.ledger._publisher = told
        accept = msgspec.structs.replace(
            simulated_policy(made.platform.root_sha256, GENUINE), tcb_grace_days=GRACE_DAYS
        )
        lent = made.app.loans.create(
            name="ageing",
            model=made.lent.model.digest,
            policy=write_policy(Policy(accept=(accept,), custodian=None)),
            terms=LoanTerms(
                lease_duration_s=8.0, max_lease_credits=16, reattest_interval_s=INTERVAL_S
            ),
            credits=10_000,
            actor="test",
        )
        made.lent = dataclasses.replace(made.lent, loan=lent.row)
        yield Scene(made, clock, told, lent.secret)


def test_new_tcb_info_warns_then_shortens_then_refuses(scene: Scene) -> None:
    enclave = scene.enrol()
    lease = scene.lease(enclave)
    assert lease is not None
    assert (lease.duration_s, lease.credits) == (8.0, 16)

    scene.newest_svn = OUT_OF_DATE
    scene.attest_again(enclave)

    (warning,) = scene.events(enclave, "tcb.warning")
    assert warning["short"][0] == "SGX component 1: 1 < 2"
    assert (warning["expected"], warning["came"]) == (["UpToDate"], "OutOfDate")
    assert datetime.fromisoformat(warning["window_ends"]) == ENDS
    lease = scene.lease(enclave)
    assert lease is not None
    assert (lease.duration_s, lease.credits) == (8.0, 16)

    for quarter, divisor in ((1, 2), (2, 4), (3, 8)):
        scene.clock.time = LEVEL + quarter * timedelta(days=GRACE_DAYS / 4)
        assert scene.lease(enclave) is None, "overdue: time moved on without fresh evidence"
        scene.attest_again(enclave)
        lease = scene.lease(enclave)
        assert lease is not None
        assert (lease.duration_s, lease.credits) == (8.0 / divisor, 16 // divisor)
        with scene.made.app.ledger.read() as tx:
            view = session_view(tx, session_of(tx, enclave.session)).tcb
            assert tx.count_steps(enclave.loan) == {Step(view.step): 1}
        assert (view.leases_divided_by, view.window_ends) == (divisor, ENDS)
    steps = [said["step"] for said in scene.events(enclave, "tcb.shortened")]
    assert steps == ["halved", "quartered", "eighth"]

    scene.clock.time = ENDS - timedelta(seconds=INTERVAL_S + 0.5)
    scene.attest_again(enclave)
    last = scene.lease(enclave)
    assert last is not None
    assert last.duration_s == 0.5, "no lease outlives the window"

    scene.clock.time = ENDS
    assert scene.lease(enclave) is None
    assert scene.session(enclave).state is SessionState.LIVE
    scene.made.app.reattestation.sweep()
    assert len(scene.events(enclave, "tcb.refused")) == 1
    assert scene.session(enclave).state is SessionState.ENDED
    assert scene.told.pushes[-1].ends
    with pytest.raises((AppraisalError, RefusedError)):
        scene.enrol()


def test_a_platform_that_was_updated_gets_its_full_leases_back(scene: Scene) -> None:
    scene.newest_svn = OUT_OF_DATE
    enclave = scene.enrol()
    assert len(scene.events(enclave, "tcb.warning")) == 1
    scene.clock.time = LEVEL + timedelta(days=GRACE_DAYS / 4)
    scene.newest_svn = 1
    scene.attest_again(enclave)
    assert len(scene.events(enclave, "tcb.restored")) == 1
    assert scene.standing(enclave).step is Step.FULL
    lease = scene.lease(enclave)
    assert lease is not None
    assert lease.duration_s == 8.0


def test_a_platform_past_its_grace_is_ended_with_every_reason(scene: Scene) -> None:
    enclave = scene.enrol()
    scene.newest_svn = OUT_OF_DATE
    scene.clock.time = ENDS
    refused = scene.is_refused(enclave, scene.shows(enclave, scene.asked(enclave)))
    assert refused == ["tcb.status"]
    (said,) = scene.events(enclave, "tcb.refused")
    assert "SGX component 1: 1 < 2" in said["short"]
    assert (said["expected"], said["came"]) == ("UpToDate", "OutOfDate")


def test_an_unanswered_wish_ends_the_leases(scene: Scene) -> None:
    enclave = scene.enrol()
    nonce = scene.asked(enclave)
    assert scene.lease(enclave) is not None
    scene.clock.forward(ANSWER_WITHIN_S)
    assert scene.lease(enclave) is None
    scene.made.app.reattestation.sweep()
    scene.made.app.reattestation.sweep()
    assert len(scene.events(enclave, "reattestation.overdue")) == 1
    assert scene.standing(enclave).overdue
    assert scene.session(enclave).state is SessionState.LIVE

    scene.made.app.reattestation.answer(enclave.session, scene.shows(enclave, nonce))

    assert isinstance(scene.told.pushes[-1].message, CreditsFreed)
    assert not scene.standing(enclave).overdue
    assert scene.lease(enclave) is not None


def test_an_answer_kept_back_is_not_fresh_and_another_is_wanted(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave))
    scene.clock.forward(ANSWER_WITHIN_S + 1)
    scene.made.app.reattestation.answer(enclave.session, shown)
    assert scene.lease(enclave) is None
    assert len(scene.events(enclave, "reattestation.late")) == 1
    anew = scene.told.pushes[-1].message
    assert isinstance(anew, ReattestWanted)
    assert anew.nonce != shown.nonce
    scene.made.app.reattestation.answer(enclave.session, scene.shows(enclave, anew.nonce))
    assert scene.lease(enclave) is not None


def test_to_reconnect_puts_nothing_off(scene: Scene) -> None:
    enclave = scene.enrol()
    first = scene.asked(enclave)
    scene.clock.forward(ANSWER_WITHIN_S)
    scene.made.app.sessions.disconnect(enclave.session)
    scene.made.app.sessions.connect(enclave.session)
    scene.made.app.reattestation.connected(enclave.session)
    again = scene.told.pushes[-1].message
    assert isinstance(again, ReattestWanted)
    assert again.nonce != first
    assert scene.lease(enclave) is None


def test_an_old_session_that_returns_must_attest_first(scene: Scene) -> None:
    enclave = scene.enrol()
    scene.made.app.sessions.disconnect(enclave.session)
    scene.clock.forward(10 * INTERVAL_S)
    scene.made.app.reattestation.sweep()
    assert scene.standing(enclave).nonce is None, "nobody is there to be asked"
    scene.made.app.sessions.connect(enclave.session)
    scene.made.app.reattestation.connected(enclave.session)
    assert scene.lease(enclave) is None
    nonce = scene.standing(enclave).nonce
    assert nonce is not None
    scene.made.app.reattestation.answer(enclave.session, scene.shows(enclave, nonce))
    assert scene.lease(enclave) is not None


def test_who_is_not_due_is_not_asked(scene: Scene) -> None:
    enclave = scene.enrol()
    scene.clock.forward(INTERVAL_S - 1)
    scene.made.app.reattestation.connected(enclave.session)
    assert scene.made.app.reattestation.sweep() == 0
    assert scene.standing(enclave).nonce is None


def test_a_replayed_answer_ends_the_session(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave))
    scene.made.app.reattestation.answer(enclave.session, shown)
    assert scene.is_refused(enclave, shown) == ["reattestation.nonce"]


def test_an_answer_nobody_asked_for_ends_the_session(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, secrets.token_bytes(32))
    assert scene.is_refused(enclave, shown) == ["reattestation.nonce"]


def test_evidence_for_another_nonce_ends_the_session(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave), made_for=secrets.token_bytes(32))
    assert scene.is_refused(enclave, shown) == ["binding"]


def test_another_sessions_nonce_and_evidence_end_only_who_shows_them(scene: Scene) -> None:
    thief = scene.enrol()
    scene.clock.forward(INTERVAL_S / 2)
    honest = scene.enrol()
    scene.clock.forward(INTERVAL_S / 2)
    nonce = scene.asked(honest)
    shown = scene.shows(honest, nonce)
    assert scene.is_refused(thief, shown) == ["reattestation.nonce"]
    scene.made.app.reattestation.answer(honest.session, shown)
    assert scene.session(honest).state is SessionState.LIVE


def test_evidence_for_other_keys_ends_the_session(scene: Scene) -> None:
    enclave, other = scene.enrol(), EnclaveSide.make()
    shown = scene.shows(enclave, scene.asked(enclave), keys=other.keys)
    assert scene.is_refused(enclave, shown) == ["binding"]


def test_another_custodians_evidence_ends_the_session(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave), custodian_key=bytes(32))
    assert scene.is_refused(enclave, shown) == ["binding"]


def test_other_code_ends_the_session(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave), mr_td=bytes(48))
    assert scene.is_refused(enclave, shown) == ["tdx.mr_td"]


def test_a_nonce_that_was_not_kept_is_not_sent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    enclave = scene.enrol()
    scene.clock.forward(INTERVAL_S)
    pushes = list(scene.told.pushes)
    write = scene.made.app.ledger._store.write

    @contextlib.contextmanager
    def full_disk() -> Iterator[Writing]:
        with write() as tx:
            yield tx
            raise UnavailableError("the disk is full")

    monkeypatch.setattr(scene.made.app.ledger._store, "write", full_disk)
    with pytest.raises(UnavailableError):
        scene.made.app.reattestation.sweep()
    assert scene.told.pushes == pushes
    assert scene.standing(enclave).nonce is None


def test_what_a_session_is_asked_survives_a_restart(scene: Scene) -> None:
    enclave = scene.enrol()
    shown = scene.shows(enclave, scene.asked(enclave))
    scene.made.app.replicas.start()
    scene.made.app.sessions.connect(enclave.session)
    scene.made.app.reattestation.connected(enclave.session)
    assert scene.is_refused(enclave, shown) == ["reattestation.nonce"]


def _as_first_schema(path: Path) -> None:
    """Rewrite a ledger as the first version of this program would have left it."""
    before = path.with_suffix(".before")
    with contextlib.closing(sqlite3.connect(before, isolation_level=None)) as old:
        old.executescript(load_migrations()[0].sql)
        found = old.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        tables = [name for (name,) in found]
        old.execute("ATTACH ? AS now", (str(path),))
        for table in tables:
            columns = ", ".join(row[1] for row in old.execute(f"PRAGMA main.table_info({table})"))
            old.execute(f"DELETE FROM main.{table}")
            old.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}")
        old.execute("PRAGMA main.user_version = 1")
    for made in path.parent.glob(path.name + "*"):
        made.unlink()
    before.rename(path)


def test_a_ledger_of_before_gains_standings_for_its_sessions(sqlite_ledger: Bench) -> None:
    ledger = sqlite_ledger
    loan = ledger.lend(10)
    enclave = ledger.enclave(loan.loan)
    ledger.close()
    _as_first_schema(ledger.path)
    ledger.reopen()
    assert ledger.loan(loan.loan) == loan
    with ledger.ledger.read() as tx:
        standing = standing_of(tx, enclave.session)
        assert standing.appraised == session_of(tx, enclave.session).opened
        # and a log, in which everything that was before is to be written
        assert tx.count_to_log() == len(tx.events_after(0, None, 1000))
    assert (standing.step, standing.grace, standing.nonce) == (Step.FULL, None, None)


# --- a real enclave ------------------------------------------------------------------------------


async def test_a_real_enclave_attests_again_while_it_serves(tmp_path: Path) -> None:
    async with open_house(tmp_path) as (made, _):
        stop, ready = asyncio.Event(), asyncio.Event()
        clock = SystemClock()
        running = asyncio.create_task(
            serve(
                EnclaveConfig(listen="127.0.0.1:0", cache=None, compute_threads=1),
                [made.ticket],
                SimulatedAttester(made.platform, clock=clock, measurement=GENUINE),
                clock=clock,
                progress=LoggedProgress(),
                stop=stop,
                on_listening=lambda _: None,
                on_ready=lambda _: ready.set(),
            )
        )
        try:
            async with asyncio.timeout(20):
                await ready.wait()
                session = an_hour_passes(made)
                with made.app.hub.watch() as changed:
                    while "reattestation.accepted" not in made.events():
                        await changed.wait()
                        changed.clear()
            with made.app.ledger.read() as tx:
                assert session_of(tx, session).state is SessionState.LIVE
                standing = standing_of(tx, session)
            assert clock.now() - standing.appraised < timedelta(minutes=1)
            assert standing.nonce is None
        finally:
            stop.set()
            await asyncio.wait({running}, timeout=20)
            running.result()


def an_hour_passes(made: House) -> SessionId:
    """Let the only session's evidence be so old that the next sweep asks for more."""
    with made.app.ledger.write() as entry:
        (session,) = entry.tx.sessions_of_loan(made.lent.loan.loan, 10)
        standing = standing_of(entry.tx, session.session)
        old = entry.now - timedelta(hours=1)
        entry.tx.set_standing(dataclasses.replace(standing, appraised=old))
    return session.session
