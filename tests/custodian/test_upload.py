"""Models in: what is sealed, what is found beside it, and what the same command does again."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from aigovtool.custodian.lend import lend
from aigovtool.custodian.onnxfile import read_signature, source_files
from aigovtool.custodian.tokens import hash_token
from aigovtool.custodian.upload import Upload, model_name
from aigovtool.errors import ConfigurationError, ConflictError, MalformedError
from aigovtool.sealing.interface import encode_interface
from aigovtool.sealing.manifest import verify_manifest
from aigovtool.wire.ticket import read_ticket
from tests.custodian.gguf import gguf
from tests.custodian.house import DIGITS, TERMS, House, house


def model_with_external_data(folder: Path, *, location: str = "weights.bin") -> Path:
    """A model whose weight lies in another file, within the branch of an If."""
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "weight")
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 2])],
        [weight],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.array(True), "yes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    inner = model.graph.node[0].attribute
    for attribute in inner:
        tensor = attribute.g.initializer[0]
        onnx.external_data_helper.set_external_data(tensor, location)
        (folder / Path(location).name).write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def upload(made: House, path: Path, **more: object):  # type: ignore[no-untyped-def]
    return made.app.uploads.upload(Upload(path=path, **more), actor="test")  # type: ignore[arg-type]


def lend_again(made: House, **more: object):  # type: ignore[no-untyped-def]
    return lend(
        made.app,
        Upload(path=DIGITS, **more),  # type: ignore[arg-type]
        credits=1000,
        terms=TERMS,
        policy=made.app.folder.policy.read_text(),
        address="127.0.0.1:7001",
    )


@pytest.fixture
def made(tmp_path: Path):  # type: ignore[no-untyped-def]
    with house(tmp_path) as custodian:
        yield custodian


def test_external_data_is_found_even_within_a_branch(tmp_path: Path) -> None:
    path = model_with_external_data(tmp_path)
    assert [file.name for file in source_files(path)] == ["model.onnx", "weights.bin"]


def test_external_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = model_with_external_data(tmp_path, location="../weights.bin")
    with pytest.raises(MalformedError) as caught:
        source_files(path)
    assert caught.value.reasons[0].code == "model.external_data"


@pytest.mark.parametrize("body", [b"", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"plain text"])
def test_what_is_no_model_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(body)
    with pytest.raises(MalformedError):
        read_signature(path)
    with pytest.raises(ConfigurationError):
        source_files(tmp_path / "none.onnx")


@pytest.mark.parametrize("size", range(0, 400, 7))
def test_a_model_cut_short_is_malformed_and_nothing_else(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(DIGITS.read_bytes()[:size])
    with contextlib.suppress(MalformedError):
        source_files(path)


def test_a_sealed_model_is_signed_listed_and_unreadable(made: House, tmp_path: Path) -> None:
    path = model_with_external_data(tmp_path)
    model = upload(made, path)
    verified = verify_manifest(model.manifest, made.app.key.public_key)
    assert verified.digest == model.digest
    assert [file.name for file in verified.manifest.files] == ["model.onnx", "weights.bin"]
    body = made.app.folder.body(model.digest)
    assert body.stat().st_size == model.body_bytes
    assert body.stat().st_mode & 0o077 == 0
    assert np.ones((4, 2), np.float32).tobytes() not in body.read_bytes()
    assert sorted(made.app.folder.models.iterdir()) == sorted(
        [body, made.app.folder.body(made.lent.model.digest)]
    )


def test_the_same_model_again_is_the_model_that_is_there(made: House) -> None:
    assert upload(made, DIGITS) == made.lent.model
    assert made.events().count("model.sealed") == 1


def test_another_model_under_a_taken_name_is_a_conflict(made: House, tmp_path: Path) -> None:
    path = model_with_external_data(tmp_path)
    with pytest.raises(ConflictError):
        upload(made, path, name="digits")
    assert upload(made, path, name="digits", version="2").version == "2"


def test_a_failed_upload_leaves_nothing(made: House, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(made.app.folder.models.iterdir())

    def fail(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.app.uploads.upload(
            Upload(path=DIGITS, name="other"), actor="test", progress=lambda total: fail
        )
    assert sorted(made.app.folder.models.iterdir()) == before
    assert made.events().count("model.sealed") == 1


def test_the_same_command_again_grants_nothing_and_moves_the_address(made: House) -> None:
    token = made.ticket.token
    again = lend_again(made)
    assert again.again
    assert again.loan.account == made.lent.loan.account
    assert (made.ticket.custodian, made.ticket.token) == ("127.0.0.1:7001", token)
    assert made.events().count("loan.created") == 1


def test_what_was_removed_is_written_again_where_it_can_be(made: House) -> None:
    folder = made.app.folder
    manifest = folder.manifest.read_bytes()
    folder.ticket.unlink()
    folder.manifest.unlink()
    again = lend_again(made)
    assert folder.manifest.read_bytes() == manifest
    with made.app.ledger.read() as tx:
        loan = tx.loan(again.loan.loan)
    assert loan is not None
    assert loan.token_sha256 == hash_token(read_ticket(folder.ticket).token)
    folder.consumer_key.unlink()
    with pytest.raises(ConfigurationError):
        lend_again(made)


def test_another_loans_files_are_not_replaced(made: House, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in made.app.folder.path.glob("*.toml")}
    path = model_with_external_data(tmp_path)
    with pytest.raises(ConflictError):
        lend(
            made.app,
            Upload(path=path),
            credits=5,
            terms=TERMS,
            policy=made.app.folder.policy.read_text(),
            address="127.0.0.1:7000",
        )
    assert {path: path.read_bytes() for path in before} == before
    assert made.events().count("loan.created") == 1


@pytest.mark.parametrize(
    ("file", "name"),
    [("a b.onnx", "a-b"), ("...onnx", "model"), ("é.onnx", "model"), ("-x-.onnx", "x")],
)
def test_names_are_made_usable(file: str, name: str) -> None:
    assert model_name(Path(file)) == name


def test_a_copy_of_the_model_is_the_same_model(made: House, tmp_path: Path) -> None:
    copy = tmp_path / "digits.onnx"
    shutil.copy(DIGITS, copy)
    assert upload(made, copy).digest == made.lent.model.digest


def test_a_gguf_file_is_known_by_its_first_bytes_and_sealed_without_tensors(
    made: House, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(gguf())
    model = upload(made, path)
    manifest = verify_manifest(model.manifest, made.app.key.public_key).manifest
    assert (manifest.format, manifest.entry, manifest.interface) == ("gguf", "tiny.onnx", None)
    assert manifest.signature.inputs == manifest.signature.outputs == ()
    assert model.context == 2048
    with made.app.ledger.read() as tx:
        assert tx.model(model.digest) == model
    assert made.lent.model.context is None


def test_a_language_model_with_an_interface_is_refused(made: House, tmp_path: Path) -> None:
    path, interface = tmp_path / "tiny.gguf", tmp_path / "interface.json"
    path.write_bytes(gguf())
    described = verify_manifest(made.lent.model.manifest, made.app.key.public_key).manifest
    assert described.interface is not None
    interface.write_bytes(encode_interface(described.interface))
    with pytest.raises(MalformedError) as caught:
        upload(made, path, interface=interface)
    assert caught.value.reasons[0].code == "interface.language_model"
