"""``attestation verify --ear`` and ``attestation ear``: the verdict as a signed token."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from aigovtool.attestation.appraise import AttestationResult
from aigovtool.attestation.ear.claims import Ear
from aigovtool.attestation.ear.issue import issue_ear
from aigovtool.attestation.ear.token import MAX_TOKEN_BYTES, EarForm, verify_ear
from aigovtool.attestation.evidence import Evidence
from aigovtool.cli.output import (
    REFUSED,
    Time,
    exits,
    fail,
    json_option,
    print_json,
    talk,
    warn_simulated,
)
from aigovtool.crypto.signing import SigningKey, format_public_key, parse_public_key
from aigovtool.errors import (
    AppraisalError,
    ConfigurationError,
    MalformedError,
    Reason,
    VerificationError,
)

_FOR_OTHERS = 0o077
_MAX_KEY_FILE_BYTES = 4096
_NAME_COLUMNS = 16
_MAKE_KEY = "make one: openssl genpkey -algorithm ed25519 -out FILE"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class EarOrder:
    """
    The token that a command is to write beside its verdict.

    Args:
        nonce: of whoever asks for the token, 8 to 64 bytes, or None.
    """

    form: EarForm
    key: SigningKey
    output: Path
    nonce: bytes | None

    def write(
        self,
        verdict: AttestationResult | AppraisalError | VerificationError,
        *,
        evidence: Evidence,
        policy: bytes,
        now: datetime,
    ) -> None:
        """Sign *verdict* and write the token; raises as `issue_ear`, and ConfigurationError."""
        token = issue_ear(
            verdict,
            evidence=evidence,
            policy=policy,
            key=self.key,
            form=self.form,
            now=now,
            nonce=self.nonce,
        )
        try:
            self.output.write_bytes(token)
        except OSError as error:
            raise ConfigurationError(
                f"{self.output} cannot be written", code="file", came=error.strerror
            ) from None
        talk.print(
            f"EAR in {self.output}, signed by {format_public_key(self.key.public_key)}",
            markup=False,
        )


class _Nonce(click.ParamType[bytes]):
    """Bytes in hex."""

    name = "HEX"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        try:
            return value if isinstance(value, bytes) else bytes.fromhex(str(value))
        except ValueError:
            self.fail("not hex digits", param, ctx)


def ear_options(command: F) -> F:
    """Give a command the options of a token, as its argument `ear`: an `EarOrder` or None."""

    @functools.wraps(command)
    def run(
        *args: Any,
        ear_form: str | None,
        ear_key: Path | None,
        ear_output: Path | None,
        ear_nonce: bytes | None,
        **kwargs: Any,
    ) -> Any:
        ear = None
        if ear_form is not None and ear_key is not None and ear_output is not None:
            ear = EarOrder(
                form=EarForm(ear_form),
                key=read_signing_key(ear_key),
                output=ear_output,
                nonce=ear_nonce,
            )
        elif (ear_form, ear_key, ear_output, ear_nonce) != (None, None, None, None):
            raise ConfigurationError(
                "a token needs a form, a key and a file",
                code="ear.options",
                expected="--ear, --ear-key and --ear-output together",
            )
        return command(*args, ear=ear, **kwargs)

    file = click.Path(dir_okay=False, path_type=Path)
    for option in (
        click.option("--ear-nonce", type=_Nonce(), help="Of whoever asks for it, 8 to 64 bytes."),
        click.option("--ear-output", type=file, help="Where to write it; replaced when there."),
        click.option("--ear-key", type=file, help="Ed25519 private key (PEM, mode 0600)."),
        click.option(
            "--ear",
            "ear_form",
            type=click.Choice([form.value for form in EarForm]),
            help="Write the verdict, a refusal too, as a signed EAR token.",
        ),
    ):
        run = option(run)
    return cast("F", run)


def read_signing_key(path: Path) -> SigningKey:
    """
    Read an Ed25519 private key: PEM (PKCS #8), without a password, for its owner alone.

    Raises:
        ConfigurationError: it cannot be read, others may read it, or it is no such key.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read", code="ear.key", came=error.strerror, mend=_MAKE_KEY
        ) from None
    if mode & _FOR_OTHERS:
        raise ConfigurationError(
            f"others than its owner may use {path}",
            code="ear.key",
            expected="mode 0600",
            came=f"mode {mode & 0o777:04o}",
            mend=f"chmod 600 {path}",
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{path} holds no Ed25519 private key",
            code="ear.key",
            expected="PEM (PKCS #8), without a password",
            mend=_MAKE_KEY,
        )
    return SigningKey(key)


@click.group()
def ear() -> None:
    """Attestation results as signed tokens (EAR): what `verify --ear` and custodians write."""


@ear.command()
@click.argument("token", type=click.File("rb"))
@click.option(
    "--public-key",
    required=True,
    metavar="ed25519:…",
    help="Of the verifier whose word you rely on; from itself, never from the token's sender.",
)
@click.option("--nonce", type=_Nonce(), help="That you asked for the token with.")
@click.option("--time", "now", type=Time(), help="Check as of this time. Default: now.")
@json_option
@exits
def verify(
    *, token: BinaryIO, public_key: str, nonce: bytes | None, now: datetime | None, as_json: bool
) -> None:
    """Did this verifier sign this token (JWT or CWT; - is stdin), and what does it say?

    Exit codes: 0 genuine and the evidence was accepted, 1 the token or the evidence refused,
    2 malformed or misused. Accepted is the policy's word: look at the status too.
    """
    said = verify_ear(
        _read(token), parse_public_key(public_key), now=now or datetime.now(UTC), nonce=nonce
    )
    verdict = said.appraisal.verdict
    if verdict.simulated:
        warn_simulated()
    if as_json:
        print_json(said)
    else:
        _print(said)
    if verdict.accepted:
        return
    if as_json:
        sys.exit(REFUSED)
    fail(_refusal(said), as_json=False)


def _read(token: BinaryIO) -> bytes:
    """Read a token; the newline that a terminal wants after a JWT is no part of it."""
    data = token.read(MAX_TOKEN_BYTES + 2)  # one more than newline and the largest token
    return data.removesuffix(b"\n") if data.startswith(b"eyJ") else data


def _print(said: Ear) -> None:
    appraisal = said.appraisal
    verdict = appraisal.verdict
    for name, text in (
        ("status", appraisal.status.value),
        ("accepted", "yes" if verdict.accepted else "no"),
        ("genuine", "yes" if verdict.genuine else "no"),
        ("tee", said.tee),
        ("measurement", verdict.measurement or "not told"),
        ("TCB status", verdict.tcb_status or "not known"),
        ("advisories", ", ".join(verdict.advisories) or "none"),
        ("evidence", f"sha256 {verdict.evidence_sha256}"),
        ("policy", appraisal.policy_id),
        ("verifier", said.verifier.build),
        ("issued", str(said.issued)),
        ("expires", str(said.expires)),
    ):
        click.echo(f"{name:<{_NAME_COLUMNS}} {text}")
    for warning in verdict.warnings:
        talk.print(f"note: {warning}", markup=False)


def _refusal(said: Ear) -> AppraisalError | VerificationError:
    """Return the refusal that the token tells of."""
    verdict = said.appraisal.verdict
    reasons = [
        Reason(
            code=why.code,
            message=why.message,
            expected=why.expected,
            came=why.came,
            mend=why.mend,
        )
        for why in verdict.reasons
    ]
    if not reasons:
        raise MalformedError("a token of a refusal without a reason", code="ear.malformed")
    kind = AppraisalError if verdict.genuine else VerificationError
    return kind(reasons[0], others=reasons[1:])
