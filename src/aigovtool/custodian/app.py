"""
The custodian put together: the one module that builds its parts, and the one that makes its keys.

`initialise` makes a data folder, once. `open_custodian` opens one that was made, and never makes
what should exist: a wrong path is an error, not a new custodian.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aigovtool.attestation.policy import Alternative, Policy, write_policy
from aigovtool.attestation.verify import judge
from aigovtool.clock import Clock
from aigovtool.crypto.signing import SigningKey
from aigovtool.crypto.tls import make_custodian_root
from aigovtool.custodian import files, rollback, vault
from aigovtool.custodian.accounting import Accounting
from aigovtool.custodian.admission import Admission
from aigovtool.custodian.appraisal import Appraiser, Completes
from aigovtool.custodian.borrowers import Borrowers
from aigovtool.custodian.challenges import Challenges
from aigovtool.custodian.consumers import Consumers
from aigovtool.custodian.data import DataFolder
from aigovtool.custodian.databases import (
    create_ledger,
    database_of,
    may_be_shared,
    open_ledger,
)
from aigovtool.custodian.delivering import Delivering
from aigovtool.custodian.enrolment import Enrolment
from aigovtool.custodian.extraction import Extraction
from aigovtool.custodian.grants import Grants
from aigovtool.custodian.handing_in import HandingIn
from aigovtool.custodian.hub import Hub
from aigovtool.custodian.leasing import Leasing
from aigovtool.custodian.ledger import Ledger, new_incarnation
from aigovtool.custodian.loans import Loans
from aigovtool.custodian.log_files import FolderDisk, LogFiles
from aigovtool.custodian.logbook import Logbook, new_log_head, new_log_key
from aigovtool.custodian.mark import Mark, held_mark, mark_path
from aigovtool.custodian.metrics import Metrics
from aigovtool.custodian.notices import Notices
from aigovtool.custodian.reattestation import Reattestation
from aigovtool.custodian.reconciling import Reconciling
from aigovtool.custodian.records import Custodian, LogHead
from aigovtool.custodian.release import Releasing
from aigovtool.custodian.replicas import Replicas
from aigovtool.custodian.sessions import Sessions
from aigovtool.custodian.store.base import Store
from aigovtool.custodian.tokens import ADMIN, METRICS, hash_token, new_token
from aigovtool.custodian.upload import Uploads
from aigovtool.custodian.vault import Vault
from aigovtool.custodian.verdicts import Verdicts
from aigovtool.custodian.webhooks import Webhooks
from aigovtool.errors import (
    ConfigurationError,
    ConflictError,
    MalformedError,
    NotFoundError,
    RefusedError,
    VerificationError,
)

MOST_REPLICAS = 64  # with one data folder
LOOKS_AT_LOG = 5  # a replica beside us may publish between our looks at ledger and log
POOL_THREADS = 4  # appraisals and the admin API; reports have a thread of their own

POLICY_PREFACE = """What evidence new loans accept: one [[accept]] table for each kind.
`aigovtool enclave measure`, run where the enclave will run, prints such a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """Everything that a server or a command needs; made by `open_custodian`."""

    folder: DataFolder
    clock: Clock
    identity: Custodian
    key: SigningKey
    admin_token_sha256: bytes
    metrics_token_sha256: bytes | None
    ledger: Ledger
    hub: Hub
    metrics: Metrics
    webhooks: Webhooks
    delivering: Delivering
    loans: Loans
    consumers: Consumers
    grants: Grants
    sessions: Sessions
    extraction: Extraction
    replicas: Replicas
    leasing: Leasing
    handing_in: HandingIn
    enrolment: Enrolment
    reattestation: Reattestation
    accounting: Accounting
    uploads: Uploads
    reconciling: Reconciling
    logbook: Logbook
    notices: Notices
    borrowers: Borrowers
    reports: ThreadPoolExecutor
    pool: ThreadPoolExecutor

    def adopt_log(self, *, actor: str) -> None:
        """
        After a reconciliation: let the published log go on from where it was, if it was ahead.

        Raises:
            RefusedError: it is damaged, or of another history; nothing more is logged until the
                operator has moved it away.
        """
        with contextlib.suppress(NotFoundError):  # nothing was ever published
            self.logbook.adopt(actor=actor)


def initialise(
    folder: DataFolder,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    accept: tuple[Alternative, ...] = (),
    database: str | None = None,
) -> bytes:
    """
    Make keys, database and token in *folder*; return the custodian's public key.

    Args:
        accept: alternatives that new loans accept; none leaves ``policy.toml`` to the operator.
        database: URL of an empty database for the ledger, None for a file in the folder. It is
            noted in the folder.

    Raises:
        ConflictError: the folder holds a custodian's files already, or the database a ledger;
            nothing was changed.
        ConfigurationError, UnavailableError: it cannot be written; nothing is left behind.
    """
    url = database_of(folder, database, environ)
    for made in (folder.ledger, folder.database_url, folder.master_key, folder.admin_token):
        if made.exists():
            raise ConflictError(
                f"{folder.path} holds a custodian already",
                code="data.initialised",
                came=made.name,
                mend="serve it, or name another --data folder; its keys are never replaced",
            )
    try:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging = DataFolder(folder.path / f".init-{secrets.token_hex(8)}")
        staging.path.mkdir(mode=0o700)
    except OSError as error:
        raise files.unwritable(folder.path, error) from None
    try:
        if may_be_shared(url):
            files.write_whole(staging.database_url, url + "\n")
        else:
            url = database_of(staging, database, environ)
        public_key = _make(staging, url=url, clock=clock, environ=environ, accept=accept)
        # the ledger last: with it the folder is a custodian's, without it nothing is lost
        ledgers = {staging.ledger.name, staging.database_url.name}
        for name in sorted(os.listdir(staging.path), key=lambda name: (name in ledgers, name)):
            (staging.path / name).rename(folder.path / name)
        files.sync_folder(folder.path)
    except OSError as error:
        raise files.unwritable(folder.path, error) from None
    finally:
        shutil.rmtree(staging.path, ignore_errors=True)
    return public_key


def _make(
    folder: DataFolder,
    *,
    url: str,
    clock: Clock,
    environ: Mapping[str, str],
    accept: tuple[Alternative, ...],
) -> bytes:
    folder.models.mkdir(mode=0o700)
    if vault.MASTER_KEY_VARIABLE not in environ:
        files.write_whole(folder.master_key, vault.write_master_key(vault.new_master_key()))
    keeper = Vault(vault.read_master_key(folder.master_key, environ))
    key = SigningKey.generate()
    files.write_whole(folder.admin_token, new_token(ADMIN) + "\n")
    files.write_whole(folder.metrics_token, new_token(METRICS) + "\n")
    if accept:
        text = write_policy(Policy(accept=accept, custodian=None), preface=POLICY_PREFACE)
        files.write_whole(folder.policy, text)
    store = create_ledger(url)
    try:
        with store.write() as tx:
            now = clock.now()
            tx.begin_incarnation(new_incarnation(), now)
            tx.insert_custodian(
                Custodian(
                    public_key=key.public_key,
                    wrapped_signing_key=keeper.keep_signing_key(key),
                    certificate_pem=make_custodian_root(key, now=now),
                    created=now,
                )
            )
            tx.insert_event(
                time=now,
                kind="custodian.created",
                actor="admin",
                loan=None,
                session=None,
                consumer=None,
                lease=None,
                detail=b"{}",
            )
    finally:
        store.close()
    return key.public_key


@contextlib.contextmanager
def open_custodian(
    folder: DataFolder,
    *,
    clock: Clock,
    environ: Mapping[str, str],
    master_key_file: Path | None = None,
    database: str | None = None,
    mark: Path | None = None,
    courier: Completes | None = None,
) -> Iterator[App]:
    """
    Open the custodian in *folder* for the length of the block: alone, unless its ledger is in a
    database that several processes may share.

    Args:
        mark: where the ledger's mark is (`mark`); None for where *environ* says.
        database: URL of the ledger, None for what `databases.database_of` finds.
        courier: fetches what enclaves do not send of their endorsements; None dials nobody.

    A ledger that was rolled back opens too, held.

    Raises:
        ConfigurationError: not initialised, a wrong master key, files that cannot be used.
        ConflictError: another process serves this folder, or a copy of it.
    """
    url = database_of(folder, database, environ)
    shared = may_be_shared(url)
    if not (shared or folder.ledger.is_file() or database):
        raise ConfigurationError(
            f"there is no custodian in {folder.path}",
            code="data.missing",
            mend=f"aigovtool custodian init --data {folder.path}",
        )
    with contextlib.ExitStack() as stack:
        if not shared:
            stack.enter_context(files.held(folder.lock))
        keeper = Vault(vault.read_master_key(master_key_file or folder.master_key, environ))
        store = open_ledger(url)
        stack.callback(store.close)
        with store.read() as tx:
            identity = tx.custodian()
        if identity is None:
            raise ConfigurationError(
                "the ledger has no custodian in it",
                code="data.missing",
                mend="restore it from a copy, or `aigovtool custodian init` another folder",
            )
        key = keeper.signing_key(identity)
        token = files.read_text(
            folder.admin_token, mend="write a long random token into it, mode 0600"
        ).strip()
        metrics_token = None
        if folder.metrics_token.exists():  # without it only the admin token reads metrics
            metrics_token = files.read_text(
                folder.metrics_token, mend="write a long random token into it, or remove it"
            ).strip()
        log_head = _begin_log(store, keeper, key)
        path = mark or (None if shared else mark_path(identity.public_key, environ))
        if path is None:
            opened = _own_mark(folder, identity.public_key, environ)
        else:
            opened = held_mark(path, identity.public_key, shared=shared)
        app = _build(
            folder,
            log_head=log_head,
            mark=stack.enter_context(opened),
            clock=clock,
            keeper=keeper,
            store=store,
            identity=identity,
            key=key,
            admin_token_sha256=hash_token(token),
            metrics_token_sha256=None if not metrics_token else hash_token(metrics_token),
            courier=courier,
            stack=stack,
        )
        _hold_behind_log(app)
        yield app


def _hold_behind_log(app: App) -> None:
    """A ledger that is older than the log it published was rolled back, mark or no mark."""
    for _ in range(LOOKS_AT_LOG):
        try:
            app.logbook.check_not_rolled_back()
        except (RefusedError, VerificationError) as error:
            reason = error.reasons[0]
        else:
            return
    app.ledger.hold(dataclasses.replace(reason, code=_behind_log(app)))


def _behind_log(app: App) -> str:
    """Return whether the mark, too, is older than the published log: then it vouches no more."""
    try:
        marked = app.ledger.mark.read()
        published = app.logbook.last_published_event()
    except (MalformedError, VerificationError):  # a damaged mark, another's log: neither compares
        return rollback.BEHIND_LOG
    older = marked is not None and marked.head.event < published
    return rollback.MARK_BEHIND_LOG if older else rollback.BEHIND_LOG


@contextlib.contextmanager
def _own_mark(folder: DataFolder, public_key: bytes, environ: Mapping[str, str]) -> Iterator[Mark]:
    """Hold the first mark of *folder* that no replica beside us holds."""
    for number in itertools.count():
        path = mark_path(public_key, environ, replica=folder.path / str(number))
        with contextlib.ExitStack() as stack:
            try:
                mark = stack.enter_context(held_mark(path, public_key, shared=True))
            except ConflictError:
                if number == MOST_REPLICAS:
                    raise
                continue
            yield mark
            return


def _begin_log(store: Store, keeper: Vault, key: SigningKey) -> LogHead:
    """Return the ledger's log, begun now if the ledger is from before there were logs."""
    with store.read() as tx:
        head = tx.log_head()
    if head is None:
        log_key = new_log_key(key.public_key)
        wrapped = keeper.keep_log_key(log_key)
        with store.write() as tx:
            head = tx.log_head()  # another replica's, perhaps
            if head is None:
                head = new_log_head(log_key, wrapped_key=wrapped, custodian=key)
                tx.insert_log_head(head)
    return head


def _build(
    folder: DataFolder,
    *,
    log_head: LogHead,
    mark: Mark,
    clock: Clock,
    keeper: Vault,
    store: Store,
    identity: Custodian,
    key: SigningKey,
    admin_token_sha256: bytes,
    metrics_token_sha256: bytes | None,
    courier: Completes | None,
    stack: contextlib.ExitStack,
) -> App:
    reports = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="reports"))
    pool = stack.enter_context(ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="pool"))
    hub = Hub()
    ledger = Ledger(store=store, clock=clock, publisher=hub, mark=mark)
    handing_in = HandingIn(ledger=ledger, custodian_key=key.public_key)
    appraiser = Appraiser(
        ledger=ledger,
        judge=judge,
        verdicts=Verdicts(key=key),
        custodian_key=key.public_key,
        courier=courier,
    )
    log_key = keeper.log_key(log_head)
    delivering = Delivering(ledger=ledger, secret_of=keeper.webhook_secret, pool=pool)
    return App(
        folder=folder,
        clock=clock,
        identity=identity,
        key=key,
        admin_token_sha256=admin_token_sha256,
        metrics_token_sha256=metrics_token_sha256,
        ledger=ledger,
        hub=hub,
        metrics=Metrics(ledger=ledger, hub=hub, clock=clock, deliveries=delivering.outcomes.copy),
        webhooks=Webhooks(ledger=ledger, keep=keeper.keep_webhook_secret),
        delivering=delivering,
        loans=Loans(ledger=ledger),
        consumers=Consumers(ledger=ledger),
        grants=Grants(ledger=ledger),
        sessions=Sessions(ledger=ledger),
        extraction=Extraction(ledger=ledger),
        replicas=Replicas(ledger=ledger),
        leasing=Leasing(ledger=ledger, key=key),
        handing_in=handing_in,
        enrolment=Enrolment(
            ledger=ledger,
            challenges=Challenges(ledger=ledger),
            admission=Admission(ledger=ledger),
            release=Releasing(ledger=ledger, vault=keeper, key=key).release,
            appraiser=appraiser,
            shown=handing_in.shown,
        ),
        accounting=Accounting(ledger=ledger, key=key),
        reattestation=Reattestation(ledger=ledger, appraiser=appraiser),
        uploads=Uploads(ledger=ledger, folder=folder, key=key, keep=keeper.keep_content_key),
        borrowers=Borrowers(ledger=ledger),
        notices=Notices(ledger=ledger, key=key, publisher=hub),
        reconciling=Reconciling(ledger=ledger, custodian_key=key.public_key),
        logbook=Logbook(
            store=store,
            files=LogFiles(disk=FolderDisk(folder.log), verifier=log_key.verifier),
            key=log_key,
            clock=clock,
        ),
        reports=reports,
        pool=pool,
    )
