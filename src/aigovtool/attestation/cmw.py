"""
Evidence in the wrapper that other tools open: RATS Conceptual Message Wrapper (CMW).

    record      [media type, value, which kind of message], the value base64url in JSON
    collection  {"__cmwc_t": what this is a collection of, label: record, …}

Rule 1: a collection is one piece of evidence: its type names the TEE, its labels are the names of
        our documents, and the media type of each record follows from both.
Rule 2: a wrapper protects nothing. What is unwrapped is evidence that nobody has checked.
Rule 3: of what the format allows, that is read which rule 1 needs: no collections in collections,
        no tunnels, no CBOR tags, no numbers in the place of media types. All else is malformed.

Source: draft-ietf-rats-msg-wrap-23, sections 3.1 (records), 3.3 (collections) and 6 (X.509).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from io import BytesIO
from typing import Any

import cbor2

from aigovtool.attestation.evidence import MAX_EVIDENCE_BYTES, Evidence, Tee
from aigovtool.errors import MalformedError, TooLargeError

MALFORMED = "cmw.malformed"
MAX_CMW_BYTES = 2 * MAX_EVIDENCE_BYTES  # base64 adds a third, labels and types a little
MAX_DEPTH = 2  # a collection, and in it records
MAX_RECORDS = 64  # 16 devices with two documents each are the most that we make

MEDIA_TYPE_CBOR = "application/cmw+cbor"
MEDIA_TYPE_JSON = "application/cmw+json"

_TYPE_LABEL = "__cmwc_t"
_TYPE = "tag:github.com,2026:mithril-security/aigovtool/evidence/{tee}"
_MEDIA_TYPE = "application/vnd.aigovtool.{tee}.{name}"
_MEDIA_TYPES_OF_OTHERS = {(Tee.NITRO, "document"): "application/aws-nitro-document"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # of documents; fits a subtype (RFC 6838, 4.2)


class Indicator(IntFlag):
    """Which kinds of messages a record holds."""

    REFERENCE_VALUES = 1 << 0
    ENDORSEMENTS = 1 << 1
    EVIDENCE = 1 << 2
    ATTESTATION_RESULTS = 1 << 3


@dataclass(frozen=True, slots=True)
class Record:
    """One message with its media type."""

    media_type: str
    value: bytes
    indicator: Indicator


@dataclass(frozen=True, slots=True)
class Collection:
    """
    Records by label.

    Args:
        kind: a URI that says what this is a collection of.
        records: at least one.
    """

    kind: str
    records: Mapping[str, Record]


def wrap(evidence: Evidence) -> Collection:
    """
    Return *evidence* as a collection.

    Raises:
        MalformedError: no document, or one whose name does not fit a media type.
    """
    records = {
        name: Record(_media_type(evidence.tee, name), body, Indicator.EVIDENCE)
        for name, body in sorted(evidence.documents.items())
    }
    _check_count(len(records))
    return Collection(kind=_TYPE.format(tee=evidence.tee), records=records)


def unwrap(collection: Collection) -> Evidence:
    """
    Return the evidence in *collection*, which nobody has checked.

    Raises:
        MalformedError: not a collection by rule 1.
    """
    tees = [tee for tee in Tee if collection.kind == _TYPE.format(tee=tee)]
    if not tees:
        raise _malformed("is not a collection of evidence that is known here", collection.kind)
    for name, record in collection.records.items():
        expected = _media_type(tees[0], name)
        if record.media_type != expected or record.indicator is not Indicator.EVIDENCE:
            raise MalformedError(
                f"the CMW record {name!r} is something else than evidence of this kind",
                code=MALFORMED,
                expected=f"{expected}, evidence",
                came=f"{record.media_type[:100]}, {record.indicator!r}",
            )
    documents = {name: record.value for name, record in collection.records.items()}
    return Evidence(tee=tees[0], documents=documents)


def to_cbor(collection: Collection) -> bytes:
    """Write as ``application/cmw+cbor``."""
    return cbor2.dumps(_items(collection, lambda value: value))


def to_json(collection: Collection) -> bytes:
    """Write as ``application/cmw+json``."""
    return json.dumps(_items(collection, _to_base64url), separators=(",", ":")).encode()


def from_cbor(data: bytes) -> Collection:
    """Read ``application/cmw+cbor``; raises MalformedError, TooLargeError."""
    _check_size(data)
    stream = BytesIO(data)
    decoder = cbor2.CBORDecoder(stream, max_depth=MAX_DEPTH, allow_duplicate_keys=False)
    try:
        item = decoder.decode()
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError):
        raise _malformed("cannot be read") from None
    if stream.tell() != len(data):
        raise _malformed("has bytes after its end")
    return _collection(item, _bytes)


def from_json(data: bytes) -> Collection:
    """Read ``application/cmw+json``; raises MalformedError, TooLargeError."""
    _check_size(data)
    try:
        item = json.loads(data, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        raise _malformed("cannot be read") from None
    return _collection(item, _from_base64url)


def _items(collection: Collection, spell: Callable[[bytes], object]) -> dict[str, object]:
    return {
        _TYPE_LABEL: collection.kind,
        **{
            label: [record.media_type, spell(record.value), record.indicator.value]
            for label, record in collection.records.items()
        },
    }


def _collection(item: object, read: Callable[[object], bytes]) -> Collection:
    match item:
        case {"__cmwc_t": str(kind), **records}:
            _check_count(len(records))
            return Collection(
                kind=kind,
                records={_label(label): _record(one, read) for label, one in records.items()},
            )
    raise _malformed("is not a collection with a type", type(item).__name__)


def _record(item: object, read: Callable[[object], bytes]) -> Record:
    match item:
        case [str(media_type), value, int(indicator)] if not isinstance(indicator, bool):
            if not 0 < indicator < 1 << len(Indicator):
                raise _malformed("has a record with an unknown indicator", str(indicator)[:20])
            return Record(media_type, read(value), Indicator(indicator))
    raise _malformed("holds what is not a record with media type, value and indicator")


def _label(label: object) -> str:
    if not isinstance(label, str):
        raise _malformed("has a label that is no text")
    return label


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise _malformed("has a record whose value is no byte string")
    return value


def _to_base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _from_base64url(value: object) -> bytes:
    if not isinstance(value, str):
        raise _malformed("has a record whose value is no text")
    try:
        padded = value.encode("ascii") + b"=" * (-len(value) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("has a record whose value is not base64url") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a label twice")
    return dict(pairs)


def _media_type(tee: Tee, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _malformed("has a document whose name does not fit a media type", name[:100])
    return _MEDIA_TYPES_OF_OTHERS.get((tee, name)) or _MEDIA_TYPE.format(tee=tee, name=name)


def _check_count(count: int) -> None:
    if not 0 < count <= MAX_RECORDS:
        raise _malformed("has no record, or too many", str(count))


def _check_size(data: bytes) -> None:
    if len(data) > MAX_CMW_BYTES:
        raise TooLargeError(
            "CMW too large", expected=f"at most {MAX_CMW_BYTES} bytes", came=f"{len(data)} bytes"
        )


def _malformed(problem: str, came: str | None = None) -> MalformedError:
    return MalformedError(f"the CMW {problem}", code=MALFORMED, came=came)
