"""From a permit to the message that carries the key: the only way out for a content key."""

from __future__ import annotations

from aigovtool.crypto.signing import SigningKey
from aigovtool.custodian import statements
from aigovtool.custodian.admission import ReleasePermit
from aigovtool.custodian.ledger import Ledger
from aigovtool.custodian.sessions import terms_of
from aigovtool.custodian.vault import Vault
from aigovtool.errors import PromiseBrokenError
from aigovtool.telemetry.traces import traced
from aigovtool.wire.enrolment import Release


class Releasing:
    """Turns permits into releases."""

    def __init__(self, *, ledger: Ledger, vault: Vault, key: SigningKey) -> None:
        self._ledger = ledger
        self._vault = vault
        self._key = key

    @traced("release")
    def release(self, permit: ReleasePermit) -> Release:
        """
        Seal the permitted content key, and state what the session holds.

        Raises:
            MalformedError: the attested HPKE key is not one.
            ConfigurationError: the content key was kept under another master key.
        """
        with self._ledger.read() as tx:
            model = tx.model(permit.model_digest)
        if model is None:
            raise PromiseBrokenError("a loan of a model that is not in the ledger")
        now = self._ledger.clock.now()
        return Release(
            session=permit.session.session,
            sealed_secrets=self._vault.wrap(permit, model),
            manifest=model.manifest,
            statement=statements.state(
                permit.session,
                permit.loan,
                lease=None,
                left=permit.loan.account.left,
                head=self._ledger.head,
                now=now,
                key=self._key,
            ),
            terms=terms_of(permit.loan, now),
        )
