"""The signed manifest: who signed it, what it may say, and what is never accepted in it."""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aigovtool.crypto.labels import Label
from aigovtool.crypto.signing import SigningKey, format_public_key
from aigovtool.errors import AIGovToolError, MalformedError, TooLargeError, VerificationError
from aigovtool.ids import sha256
from aigovtool.sealing.chunked import sealed_size
from aigovtool.sealing.interface import (
    ClassificationOutput,
    ImageInput,
    ModelInterface,
    TensorInput,
    TensorOutput,
)
from aigovtool.sealing.manifest import (
    MAX_PAYLOAD_BYTES,
    MAX_SIGNED_BYTES,
    FileEntry,
    ModelSignature,
    SealedManifest,
    body_context,
    check_file_name,
    decode_payload,
    encode_payload,
    sign_manifest,
    verify_manifest,
)
from tests.sealing.models import CUSTODIAN, OTHER_CUSTODIAN, Sealed, make_sealed

INTERFACE = ModelInterface(
    inputs=(ImageInput(name="image", width=4, height=4, crop_top=0.08, scale=1 / 255),),
    outputs=(ClassificationOutput(name="scores", labels=("negative", "positive"), softmax=False),),
)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return make_sealed(
        tmp_path_factory.mktemp("sealed"), {"model.onnx": b"weights"}, interface=INTERFACE
    )


@pytest.fixture(scope="module")
def manifest(sealed: Sealed) -> SealedManifest:
    return sealed.verified.manifest


def envelope(
    payload: bytes, key: SigningKey = CUSTODIAN, label: Label = Label.SEALED_MANIFEST
) -> bytes:
    """Sign any payload, however wrong, as the custodian would."""
    return json.dumps(
        {
            "payload": base64.b64encode(payload).decode(),
            "signature": base64.b64encode(key.sign(label, payload)).decode(),
            "public_key": format_public_key(key.public_key),
        }
    ).encode()


def changed(manifest: SealedManifest, path: tuple[str | int, ...], value: Any) -> bytes:
    """Sign the manifest with one value changed, as another program might write it."""
    tree = json.loads(encode_payload(manifest))
    node = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return envelope(json.dumps(tree).encode())


def test_what_was_signed_is_what_is_read(sealed: Sealed, manifest: SealedManifest) -> None:
    again = verify_manifest(sealed.verified.signed, CUSTODIAN.public_key)
    assert again == sealed.verified
    assert again.manifest.interface == INTERFACE
    assert again.manifest.files == (
        FileEntry(name="model.onnx", size=7, sha256=sha256(b"weights").hex()),
    )
    assert manifest.body.size == sealed_size(7) == len(sealed.body)
    assert manifest.body.sha256 == sha256(sealed.body).hex()
    assert manifest.body.header == sealed.body[:56].hex()


def test_the_model_digest_is_of_the_signed_bytes_as_they_came(manifest: SealedManifest) -> None:
    payload = json.dumps(json.loads(encode_payload(manifest)), indent=3).encode()
    verified = verify_manifest(envelope(payload), CUSTODIAN.public_key)
    assert verified.digest == sha256(payload) != sha256(encode_payload(manifest))
    assert verified.manifest == manifest


def test_a_manifest_signed_by_another_key_is_refused(manifest: SealedManifest) -> None:
    signed = sign_manifest(manifest, OTHER_CUSTODIAN)
    with pytest.raises(VerificationError) as caught:
        verify_manifest(signed, CUSTODIAN.public_key)
    reason = caught.value.reasons[0]
    assert reason.expected == format_public_key(CUSTODIAN.public_key)
    assert reason.came == format_public_key(OTHER_CUSTODIAN.public_key)


def test_a_manifest_that_claims_the_custodians_key_is_refused(manifest: SealedManifest) -> None:
    forged = json.loads(sign_manifest(manifest, OTHER_CUSTODIAN))
    forged["public_key"] = format_public_key(CUSTODIAN.public_key)
    with pytest.raises(VerificationError):
        verify_manifest(json.dumps(forged).encode(), CUSTODIAN.public_key)


def test_a_signature_made_for_another_purpose_is_refused(manifest: SealedManifest) -> None:
    signed = envelope(encode_payload(manifest), label=Label.RECEIPT)
    with pytest.raises(VerificationError):
        verify_manifest(signed, CUSTODIAN.public_key)


def test_a_change_anywhere_in_the_signed_bytes_is_refused(manifest: SealedManifest) -> None:
    payload = encode_payload(manifest)
    document = json.loads(envelope(payload))
    for at in range(0, len(payload), 7):
        altered = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        document["payload"] = base64.b64encode(altered).decode()
        with pytest.raises(VerificationError):
            verify_manifest(json.dumps(document).encode(), CUSTODIAN.public_key)


@given(cut=st.integers(0, 2000), tail=st.binary(max_size=5), noise=st.binary(max_size=60))
def test_no_foreign_exception_leaves_the_parser(
    sealed: Sealed, cut: int, tail: bytes, noise: bytes
) -> None:
    signed = sealed.verified.signed
    for bad in (signed[:cut] + tail, signed + tail, noise, envelope(noise)):
        try:
            verified = verify_manifest(bad, CUSTODIAN.public_key)
        except AIGovToolError:
            continue
        assert verified.digest == sealed.verified.digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("manifest_version",), 2),
        (("surprise",), 1),
        (("name",), "../other"),
        (("name",), "model\n"),
        (("name",), ""),
        (("name",), "x" * 129),
        (("version",), "1/2"),
        (("format",), "../pickle"),
        (("files",), []),
        (("files", 0, "size"), 0),
        (("files", 0, "size"), -1),
        (("files", 0, "size"), 8),
        (("files", 0, "size"), 1 << 60),
        (("files", 0, "sha256"), "0" * 63),
        (("files", 0, "sha256"), "A" * 64),
        (("files", 0, "sha256"), "0" * 64 + "\n"),
        (("files", 0, "name"), "../../etc/passwd"),
        (("files", 0, "surprise"), True),
        (("entry",), "other.onnx"),
        (("body", "size"), 1),
        (("body", "header"), "00"),
        (("signature", "inputs"), []),
        (("signature", "outputs"), []),
        (("signature", "inputs", 0, "datatype"), "FP8"),
        (("signature", "inputs", 0, "shape"), [-2]),
        (("created",), "2025-11-23T12:00:00"),
        (("created",), "2025-11-23T13:00:00+01:00"),
        (("created",), "yesterday"),
        (("licence",), "x" * (256 * 1024 + 1)),
        (("interface",), {}),
    ],
)
def test_a_signed_manifest_that_is_wrong_is_refused_all_the_same(
    manifest: SealedManifest, path: tuple[str | int, ...], value: object
) -> None:
    with pytest.raises(MalformedError):
        verify_manifest(changed(manifest, path, value), CUSTODIAN.public_key)


@pytest.mark.parametrize("field", SealedManifest.__struct_fields__)
def test_every_field_must_be_there(manifest: SealedManifest, field: str) -> None:
    tree = json.loads(encode_payload(manifest))
    del tree[field]
    with pytest.raises(MalformedError):
        verify_manifest(envelope(json.dumps(tree).encode()), CUSTODIAN.public_key)


def test_the_same_file_or_tensor_twice_is_refused(manifest: SealedManifest) -> None:
    tree = json.loads(encode_payload(manifest))
    tree["files"] *= 2
    tree["body"]["size"] = sealed_size(14)
    with pytest.raises(MalformedError, match="named twice"):
        decode_payload(json.dumps(tree).encode())
    tree = json.loads(encode_payload(manifest))
    tree["signature"]["outputs"] *= 2
    with pytest.raises(MalformedError, match="named twice"):
        decode_payload(json.dumps(tree).encode())


@pytest.mark.parametrize(
    "interface",
    [
        ModelInterface(
            inputs=(TensorInput(name="x", datatype="FP32", shape=(1, 4, 4, 3)),),
            outputs=(TensorOutput(name="scores"),),
        ),
        ModelInterface(
            inputs=(TensorInput(name="image", datatype="FP16", shape=(1, 4, 4, 3)),),
            outputs=(TensorOutput(name="scores"),),
        ),
        ModelInterface(
            inputs=(TensorInput(name="image", datatype="FP32", shape=(1, 5, 4, 3)),),
            outputs=(TensorOutput(name="scores"),),
        ),
        ModelInterface(
            inputs=(TensorInput(name="image", datatype="FP32", shape=(4, 4, 3)),),
            outputs=(TensorOutput(name="scores"),),
        ),
        ModelInterface(
            inputs=(TensorInput(name="image", datatype="FP32", shape=(1, 4, 4, 3)),),
            outputs=(TensorOutput(name="other"),),
        ),
    ],
)
def test_an_interface_for_another_model_is_refused(
    manifest: SealedManifest, interface: ModelInterface
) -> None:
    with pytest.raises(MalformedError, match=r"the interface (describes|does not)"):
        msgspec.structs.replace(manifest, interface=interface)


def test_a_language_model_needs_no_tensors(tmp_path: Path) -> None:
    sealed = make_sealed(
        tmp_path,
        {"model.gguf": b"GGUF"},
        format="gguf",
        entry="model.gguf",
        signature=ModelSignature(),
    )
    assert verify_manifest(sealed.verified.signed, CUSTODIAN.public_key).manifest.format == "gguf"


def test_oversize_is_refused_unread(manifest: SealedManifest) -> None:
    with pytest.raises(TooLargeError):
        verify_manifest(b" " * (MAX_SIGNED_BYTES + 1), CUSTODIAN.public_key)
    many = tuple(
        FileEntry(name=f"{number:x}".rjust(255, "w"), size=1, sha256="0" * 64)
        for number in range(12_000)
    )
    body = msgspec.structs.replace(manifest.body, size=sealed_size(len(many)))
    large = msgspec.structs.replace(manifest, files=many, entry=many[0].name, body=body)
    with pytest.raises(TooLargeError):
        sign_manifest(large, CUSTODIAN)


def test_the_largest_payload_still_fits_its_envelope() -> None:
    assert len(envelope(b"x" * MAX_PAYLOAD_BYTES)) <= MAX_SIGNED_BYTES


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../model.onnx",
        "folder/model.onnx",
        "folder\\model.onnx",
        "C:model.onnx",
        "model\0.onnx",
        "model\n.onnx",
        " model.onnx",
        "model.onnx ",
        "mode\u0301le.onnx",
        "mod\u202eel.onnx",
        "mod\u200bel.onnx",
        "\ud800",
        "x" * 256,
        "\u00e9" * 128,
        "what?.onnx",
    ],
)
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(MalformedError):
        check_file_name(name)


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", "modèle-ü.bin", "模型.gguf", "a b.bin", "x" * 255]
)
def test_plain_file_names_are_accepted(name: str) -> None:
    check_file_name(name)


@given(st.text(max_size=300))
@example("\ud800")
def test_an_accepted_name_is_one_path_component(name: str) -> None:
    try:
        check_file_name(name)
    except MalformedError:
        return
    assert Path("/folder", name).resolve().parent == Path("/folder")
    assert Path(name).name == name == unicodedata.normalize("NFC", name)


def test_no_two_models_share_a_context() -> None:
    key = CUSTODIAN.public_key
    contexts = {
        body_context(key, "ab", "c"),
        body_context(key, "a", "bc"),
        body_context(key, "abc", ""),
        body_context(OTHER_CUSTODIAN.public_key, "ab", "c"),
    }
    assert len(contexts) == 4
    with pytest.raises(MalformedError):
        body_context(key[:-1], "ab", "c")
