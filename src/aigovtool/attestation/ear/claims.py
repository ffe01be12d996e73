"""
The claims-set of an EAR: an EAT that says what a verifier made of an attester's evidence.

Rule 1: one claims-set, two spellings. JSON has names, CBOR has the draft's integer keys; both say
        the same, and both are written in one way only.
Rule 2: a token has one submodule, named for the kind of evidence (``tdx``, ``composite``, …): the
        verdict is one verdict, and either part of a composite refused refuses the whole.
Rule 3: what AIGovTool adds is one claim, ``ear.aigovtool.verdict`` (-80000): the policy's own word,
        and what it rests on. It names no machine: a token is shown around.
Rule 4: claims that are not known here are passed over, as the draft demands of receivers.

Source: draft-fv-rats-ear-05 (profile ``tag:github.com,2023:veraison/ear``, which deployed
consumers read; draft-ietf-rats-ear-03 renames profile and claims); RFC 9711; RFC 8392; RFC 6920.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Annotated, Any, Literal

import cbor2
import msgspec

from aigovtool.attestation.ear.ar4si import TIERS, Tier, TrustVector
from aigovtool.attestation.evidence import Evidence
from aigovtool.errors import MalformedError

MALFORMED = "ear.malformed"
MAX_CBOR_DEPTH = 8  # claims, submods, appraisal, verdict, reasons, reason, its text
NONCE_BYTES = (8, 64)  # RFC 9711, section 4.1
Profile = Literal["tag:github.com,2023:veraison/ear"]
PROFILE: Profile = "tag:github.com,2023:veraison/ear"

Seconds = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]  # since 1970; no float, no boolean
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class WhyNot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One reason of a refusal, as `aigovtool.errors.Reason`."""

    code: str
    message: str
    expected: str | None = None
    came: str | None = None
    mend: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    What the policy said, and of what.

    Args:
        accepted: by the policy. The status can be worse: it does not forgive what a policy does.
        genuine: the evidence is what it claims to be.
        simulated: the TEE protects nothing from the owner of its machine.
        evidence_sha256: `evidence_digest` of what was judged, in hex.
        measurement: of what was started, in hex; None when refused.
        tcb_status: the vendor's word; None where there is none, and when refused.
        advisories: of the vendor, that apply.
        warnings: what was accepted and should be known.
        reasons: of a refusal, all of them.
    """

    accepted: bool
    genuine: bool
    simulated: bool
    evidence_sha256: Digest
    measurement: str | None = None
    tcb_status: str | None = None
    advisories: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reasons: tuple[WhyNot, ...] = ()


class Appraisal(msgspec.Struct, frozen=True, kw_only=True):
    """
    An EAR-appraisal: status, vector, which policy, and our verdict.

    Args:
        policy_id: `policy_id` of the policy.
    """

    status: Tier = msgspec.field(name="ear.status")
    vector: TrustVector = msgspec.field(name="ear.trustworthiness-vector")
    policy_id: str = msgspec.field(name="ear.appraisal-policy-id")
    verdict: Verdict = msgspec.field(name="ear.aigovtool.verdict")


class VerifierId(msgspec.Struct, frozen=True, kw_only=True):
    """Who appraised: developer and build of the software."""

    developer: str
    build: str


class Ear(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    An EAR claims-set.

    Args:
        profile: of EAT; fixed.
        issued_s: seconds since 1970 (``iat``).
        expires_s: likewise (``exp``); from then on it must not be believed.
        verifier: who appraised.
        submods: one appraisal, by the kind of evidence.
        nonce: of whoever asked for the token, base64url; None when nobody gave one.
    """

    profile: Profile = msgspec.field(name="eat_profile")
    issued_s: Seconds = msgspec.field(name="iat")
    expires_s: Seconds = msgspec.field(name="exp")
    verifier: VerifierId = msgspec.field(name="ear.verifier-id")
    submods: Annotated[dict[str, Appraisal], msgspec.Meta(min_length=1, max_length=1)]
    nonce: str | None = msgspec.field(name="eat_nonce", default=None)

    @property
    def tee(self) -> str:
        """The kind of evidence."""
        return next(iter(self.submods))

    @property
    def appraisal(self) -> Appraisal:
        """The one appraisal."""
        return self.submods[self.tee]

    @property
    def issued(self) -> datetime:
        return datetime.fromtimestamp(self.issued_s, UTC)

    @property
    def expires(self) -> datetime:
        return datetime.fromtimestamp(self.expires_s, UTC)


# made here, where nobody else runs: see `wire.codec`
_decoder = msgspec.json.Decoder(Ear)


def evidence_digest(evidence: Evidence) -> str:
    """
    Return the SHA-256 of *evidence* in hex.

    It is over the kind and then, in the order of their names, names and bodies of the documents,
    each with its length before it (8 bytes, big-endian).
    """
    digest = hashlib.sha256()
    parts = [evidence.tee.encode()]
    for name, body in sorted(evidence.documents.items()):
        parts += [name.encode(), body]
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def policy_id(policy: bytes) -> str:
    """Name a policy file by its bytes: an ``ni`` URI with their SHA-256 (RFC 6920)."""
    return f"ni:///sha-256;{encode_base64url(hashlib.sha256(policy).digest())}"


def to_json(ear: Ear) -> bytes:
    """Write *ear* with names."""
    return msgspec.json.encode(ear)


def from_json(data: bytes) -> Ear:
    """Read JSON; raises MalformedError when it is not an EAR of ours."""
    try:
        return _checked(_decoder.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _not_an_ear(error) from None


def to_cbor(ear: Ear) -> bytes:
    """Write *ear* with the draft's integer keys, deterministically."""
    labelled = _map(msgspec.to_builtins(ear), _TO_CBOR)
    return cbor2.dumps(labelled, canonical=True)


def from_cbor(data: bytes) -> Ear:
    """Read CBOR; raises MalformedError when it is not an EAR of ours."""
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(
        stream, max_depth=MAX_CBOR_DEPTH, allow_indefinite=False, allow_duplicate_keys=False
    )
    try:
        named = _map(decoder.decode(), _FROM_CBOR)
        if stream.tell() != len(data):
            raise MalformedError("bytes after the end of an EAR", code=MALFORMED)
        return _checked(msgspec.convert(named, Ear))
    except _CBOR_TROUBLE as error:
        raise _not_an_ear(error) from None


# what cbor2 and msgspec raise, and what maps that are none raise where maps are read
_CBOR_TROUBLE = (
    cbor2.CBORError,
    msgspec.MsgspecError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def encode_base64url(data: bytes) -> str:
    """Write base64url without padding (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64url(text: str) -> bytes:
    """Read base64url without padding, in its one canonical form; raises MalformedError."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise MalformedError("not base64url", code=MALFORMED) from None
    if encode_base64url(data) != text:
        raise MalformedError("base64url in another form than the canonical one", code=MALFORMED)
    return data


Label = str | int
Spelling = Mapping[Label, tuple[Label, Callable[[Any], Any]]]
"""How a map is spelt otherwise: by key, the other key, and what becomes of the value."""


def _map(item: Mapping[Label, Any], spelling: Spelling) -> dict[Label, Any]:
    """Spell a map otherwise; keys that are not known are left out (rule 4)."""
    return {
        spelling[label][0]: spelling[label][1](value)
        for label, value in item.items()
        if label in spelling
    }


def _mapped(spelling: Spelling) -> Callable[[Any], Any]:
    return lambda item: _map(item, spelling)


def _same(value: Any) -> Any:
    return value


_VERIFIER = ("developer", "build")
_ASPECTS = tuple(field.encode_name for field in msgspec.structs.fields(TrustVector))
_VERDICT = ("ear.aigovtool.verdict", -80000)  # below -65536 is for private use (RFC 8392, 9.1)


def _positions(names: tuple[str, ...]) -> Spelling:
    return {name: (position, _same) for position, name in enumerate(names)}


def _names(names: tuple[str, ...]) -> Spelling:
    return {position: (name, _same) for position, name in enumerate(names)}


_TO_CBOR: Spelling = {
    "eat_profile": (265, _same),
    "iat": (6, _same),
    "exp": (4, _same),
    "eat_nonce": (10, decode_base64url),
    "ear.verifier-id": (1004, _mapped(_positions(_VERIFIER))),
    "submods": (
        266,
        lambda submods: {
            tee: _map(
                appraisal,
                {
                    "ear.status": (1000, lambda word: Tier(word).number),
                    "ear.trustworthiness-vector": (1001, _mapped(_positions(_ASPECTS))),
                    "ear.appraisal-policy-id": (1003, _same),
                    _VERDICT[0]: (_VERDICT[1], _same),
                },
            )
            for tee, appraisal in submods.items()
        },
    ),
}
_FROM_CBOR: Spelling = {
    265: ("eat_profile", _same),
    6: ("iat", _same),
    4: ("exp", _same),
    10: ("eat_nonce", encode_base64url),
    1004: ("ear.verifier-id", _mapped(_names(_VERIFIER))),
    266: (
        "submods",
        lambda submods: {
            tee: _map(
                appraisal,
                {
                    1000: ("ear.status", TIERS.__getitem__),
                    1001: ("ear.trustworthiness-vector", _mapped(_names(_ASPECTS))),
                    1003: ("ear.appraisal-policy-id", _same),
                    _VERDICT[1]: (_VERDICT[0], _same),
                },
            )
            for tee, appraisal in submods.items()
        },
    ),
}


def _checked(ear: Ear) -> Ear:
    """Hold the claims against each other: no status better than the vector, a nonce of a size."""
    appraisal = ear.appraisal
    if appraisal.status.number < appraisal.vector.tier.number:
        raise MalformedError(
            "an EAR whose status is better than its worst claim",
            code=MALFORMED,
            expected=appraisal.vector.tier,
            came=appraisal.status,
        )
    if ear.nonce is not None:
        check_nonce(decode_base64url(ear.nonce))
    return ear


def check_nonce(nonce: bytes) -> None:
    """Raise MalformedError when *nonce* is not of a size that EAT allows."""
    least, most = NONCE_BYTES
    if not least <= len(nonce) <= most:
        raise MalformedError(
            "an EAT nonce of a wrong length",
            code="ear.nonce",
            expected=f"{least} to {most} bytes",
            came=f"{len(nonce)} bytes",
        )


def _not_an_ear(error: Exception) -> MalformedError:
    return MalformedError(
        "the token's claims are not those of an EAR", code=MALFORMED, came=type(error).__name__
    )
