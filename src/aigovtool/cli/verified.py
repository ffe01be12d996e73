"""What was verified of an enclave, as a short list for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from aigovtool.channel.judge import VerifiedEnclave
from aigovtool.crypto.signing import fingerprint, format_public_key
from aigovtool.wire.budget import BudgetView

_LABEL_COLUMNS = 13


def as_lines(enclave: VerifiedEnclave, budget: BudgetView | None) -> Iterator[Text]:
    """Give one line for each thing that was checked."""
    seen, statement, model = enclave.attestation, enclave.statement, enclave.model
    status = "no TCB status" if seen.tcb_status is None else f"TCB {seen.tcb_status}"
    advisories = f", {', '.join(seen.advisories)}" if seen.advisories else ""
    tee = "SIMULATED" if enclave.simulated else str(seen.tee)
    yield _checked("evidence", f"{tee}, fresh, bound to this very connection")
    yield _checked("code", seen.measurement)
    yield _checked("platform", f"{seen.platform_id}, {status}{advisories}")
    yield _checked("custodian", fingerprint(enclave.custodian_key))
    yield _checked("loan", f"{enclave.loan}, session {statement.session}")
    yield _checked("model", f"{model.manifest.name} {model.manifest.version}, {model.digest.hex()}")
    if statement.lease is None:
        yield _note("lease", "none: there was nothing to lease")
    else:
        yield _checked("lease", f"{statement.lease}, as of {statement.issued:%FT%TZ}")
    if budget is not None:
        unit = "queries" if budget.token_price is None else "credits"
        yield _note(f"{unit} left", f"{budget.remaining}, loan {budget.state}")
        if (price := budget.token_price) is not None:
            yield _note("token price", f"{price.input} of input, {price.output} of output")


def as_json_value(enclave: VerifiedEnclave, budget: BudgetView | None) -> dict[str, Any]:
    """Return the same, complete; digests and keys in hex."""
    seen, statement, model = enclave.attestation, enclave.statement, enclave.model
    return {
        "simulated": enclave.simulated,
        "tee": seen.tee,
        "measurement": seen.measurement,
        "tcb_status": seen.tcb_status,
        "advisories": seen.advisories,
        "warnings": seen.warnings,
        "platform_id": seen.platform_id,
        "valid_until": seen.valid_until,
        "custodian": format_public_key(enclave.custodian_key),
        "loan": enclave.loan,
        "session": statement.session,
        "model": {
            "name": model.manifest.name,
            "version": model.manifest.version,
            "digest": model.digest.hex(),
        },
        "lease": statement.lease,
        "statement_issued": statement.issued,
        "statement_expires": statement.expires,
        "signing_key": format_public_key(enclave.keys.signing_key),
        "tls_spki_sha256": enclave.keys.tls_spki_sha256.hex(),
        "judged": enclave.judged,
        "remaining": None if budget is None else budget.remaining,
        "state": None if budget is None else budget.state,
    }


def _checked(label: str, text: str) -> Text:
    return Text("✔ ", style="green") + _labelled(label, text)


def _note(label: str, text: str) -> Text:
    return Text("  ") + _labelled(label, text)


def _labelled(label: str, text: str) -> Text:
    return Text(f"{label:<{_LABEL_COLUMNS}}", style="bold") + Text(text, style="default")
