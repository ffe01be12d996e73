"""Files become the model's inputs, or an error that says what the model takes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from aigovtool.client.inputs import fit_inputs, read_inputs
from aigovtool.errors import (
    AIGovToolError,
    BadTensorError,
    ConfigurationError,
    MalformedError,
    TooLargeError,
)
from aigovtool.sealing.interface import ImageInput, ModelInterface, TensorOutput, TextInput
from aigovtool.wire.oip import Limits, ModelMetadata, TensorSignature

SMALL = Limits(max_body_bytes=4096, max_json_bytes=4096, max_tensors=4, max_elements=100)


def model_of(*inputs: tuple[str, str, tuple[int, ...]]) -> ModelMetadata:
    return ModelMetadata(
        name="m",
        platform="onnx_onnxv1",
        inputs=tuple(TensorSignature(name=n, datatype=d, shape=s) for n, d, s in inputs),
        outputs=(),
    )


def described(one: Any) -> ModelInterface:
    return ModelInterface(inputs=(one,), outputs=(TensorOutput(name="y"),))


X = model_of(("x", "FP32", (-1, 2)))
TWO = model_of(("x", "FP32", (-1, 2)), ("n", "INT8", (1,)))


class Files:
    """Writes a file and reads it back as inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(
        self, name: str, data: Any, model: ModelMetadata = X, interface: Any = None
    ) -> dict[str, Any]:
        path = self.folder / name
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return read_inputs(path, model=model, interface=interface, limits=SMALL)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array))
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


ROW = np.array([[1.5, 2.5]], np.float32)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", npy(ROW)),
        ("a.NPY", npy(ROW)),
        ("a.npy", npy(ROW.astype(np.float64))),
        ("a.npy", npy(np.asfortranarray(ROW))),
        ("a.npy", npy(ROW.astype(">f4"))),
        ("a.npz", npz(x=ROW)),
        ("a.json", [[1.5, 2.5]]),
        ("a.json", [1.5, 2.5]),
        ("a.json", {"x": [[1.5, 2.5]]}),
        ("a.json", {"x": [1.5, 2.5]}),
        (
            "a.json",
            {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, 2.5]}]},
        ),
    ],
)
def test_every_way_to_write_a_tensor_gives_the_same(files: Files, name: str, data: Any) -> None:
    inputs = files.read(name, data)
    assert list(inputs) == ["x"]
    assert inputs["x"].dtype == np.float32
    assert np.array_equal(inputs["x"], ROW)


def test_several_inputs_are_named(files: Files) -> None:
    for name, data in (
        ("a.npz", npz(n=np.array([3], np.int8), x=ROW)),
        ("a.json", {"n": [3], "x": [1.5, 2.5]}),
    ):
        inputs = files.read(name, data, TWO)
        assert list(inputs) == ["x", "n"]
        assert inputs["n"].tolist() == [3]
    for name, data in (("a.npy", npy(ROW)), ("a.json", [[1.5, 2.5]])):
        with pytest.raises(BadTensorError) as caught:
            files.read(name, data, TWO)
        assert "'n' INT8 [1]" in str(caught.value)


def test_an_input_that_is_called_inputs_is_not_taken_for_a_request(files: Files) -> None:
    model = model_of(("inputs", "INT64", (2,)))
    assert files.read("a.json", {"inputs": [1, 2]}, model)["inputs"].tolist() == [1, 2]


def test_a_scalar_is_a_list_of_one(files: Files) -> None:
    model = model_of(("x", "INT64", ()))
    assert files.read("a.json", [42], model)["x"].shape == ()
    assert files.read("a.npy", npy(np.array(42)), model)["x"].tolist() == 42


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([300]), "UINT8"),
        (np.array([-1]), "UINT64"),
        (np.array([2**63], np.uint64), "INT64"),
        (np.array([2**24 + 1]), "FP32"),
        (np.array([2**53 + 1]), "FP64"),
        (np.array([1e39]), "FP32"),
        (np.array([1.0]), "INT64"),
        (np.array([True]), "INT64"),
        (np.array([1]), "BOOL"),
        (np.array(["1"]), "INT64"),
        (np.array([1]), "BYTES"),
        (np.array([1j]), "FP32"),
        (np.array([1], "m8[s]"), "INT64"),
    ],
)
def test_a_number_is_never_bent_to_fit(array: Any, datatype: str) -> None:
    with pytest.raises(BadTensorError):
        fit_inputs({"x": array}, model_of(("x", datatype, (1,))))


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([200]), "UINT8"),
        (np.array([7], np.uint8), "INT64"),
        (np.array([2**24]), "FP32"),
        (np.array([0.1]), "FP32"),
        (np.array([np.nan]), "FP16"),
        (np.array([np.inf], np.float16), "FP64"),
    ],
)
def test_a_number_that_fits_is_converted(array: Any, datatype: str) -> None:
    fitted = fit_inputs({"x": array}, model_of(("x", datatype, (1,))))["x"]
    assert np.allclose(fitted.astype(float), array.astype(float), rtol=1e-6, equal_nan=True)


def test_text_becomes_one_element_in_the_model_s_encoding(files: Files) -> None:
    model = model_of(("t", "BYTES", (1, 1)))
    text = described(TextInput(name="t", shape=(1, 1), encoding="latin-1", max_bytes=4))
    tensor = files.read("a.txt", "café".encode(), model, text)["t"]
    assert tensor.tolist() == [["café".encode("latin-1")]]
    with pytest.raises(BadTensorError):
        files.read("a.txt", "€".encode(), model, text)
    with pytest.raises(TooLargeError):
        files.read("a.txt", b"12345", model, text)
    with pytest.raises(MalformedError):
        files.read("a.txt", b"\xff", model, text)


def test_a_picture_goes_by_the_interface_whatever_its_name(files: Files) -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4), 51).save(file, "PNG")
    spec = ImageInput(name="x", width=1, height=2, channels="grayscale", scale=1 / 255)
    image = described(msgspec.structs.replace(spec, layout="FLAT"))
    assert np.allclose(files.read("a.jpg", file.getvalue(), X, image)["x"], [[0.2, 0.2]])
    with pytest.raises(MalformedError, match="not a picture"):
        files.read("a.png", b"no picture", X, image)


def test_an_interface_that_lies_about_the_model_is_found_before_anything_is_sent(
    files: Files,
) -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    wrong = described(ImageInput(name="x", width=3, height=3, channels="grayscale"))
    with pytest.raises(BadTensorError, match="not what the model takes"):
        files.read("a.png", file.getvalue(), X, wrong)


def test_without_a_description_a_picture_is_refused_with_what_is_taken(files: Files) -> None:
    with pytest.raises(BadTensorError) as caught:
        files.read("a.png", b"\x89PNG")
    assert caught.value.reasons[0].expected == ".npy or .npz or .json with 'x' FP32 [-1, 2]"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.npy", tmp_path):
        with pytest.raises(ConfigurationError, match=str(path)):
            read_inputs(path, model=X, interface=None)


def test_python_objects_are_never_unpickled(files: Files, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    evil = np.array([Evil()], object)
    file = io.BytesIO()
    np.save(file, evil, allow_pickle=True)
    for name, data in (("a.npy", file.getvalue()), ("a.npz", npz_with(file.getvalue()))):
        with pytest.raises(MalformedError):
            files.read(name, data)
    assert not marker.exists()


def npz_with(member: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    return file.getvalue()


def test_an_archive_that_grows_is_refused_unread(files: Files) -> None:
    bomb = npz_with(bytes(1 << 20))
    assert len(bomb) < SMALL.max_body_bytes
    with pytest.raises(TooLargeError):
        files.read("a.npz", bomb)
    with pytest.raises(TooLargeError):
        files.read("a.npz", npz(**{f"a{n}": ROW for n in range(5)}))
    with pytest.raises(TooLargeError):
        files.read("a.npy", bytes(4097))


def test_a_header_that_states_more_than_follows_is_refused(files: Files) -> None:
    lie = npy(ROW).replace(b"(1, 2), ", b"(1, 9**9)", 1)
    huge = npy(ROW).replace(b"(1, 2), }  ", b"(1<<60,2)} ", 1)
    for data in (lie, huge, npy(ROW)[:-1], npz(x=ROW)):
        with pytest.raises(MalformedError):
            files.read("a.npy", data)


@given(data=st.data())
@example(data=None)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_only_our_errors_leave_whatever_a_file_holds(files: Files, data: Any) -> None:
    if data is None:
        return
    name, seed = data.draw(
        st.sampled_from(
            [
                ("a.npy", npy(ROW)),
                ("a.npz", npz(x=ROW)),
                ("a.json", b'{"x":[[1.5,2.5]]}'),
                ("a.json", b"[1,2]"),
            ]
        )
    )
    body = bytearray(seed)
    for _ in range(data.draw(st.integers(0, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        inputs = files.read(name, bytes(body[: data.draw(st.integers(0, len(body)))]))
    except AIGovToolError:
        return
    assert inputs["x"].dtype == np.float32


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"1",
        b"null",
        b"{}",
        b"[]",
        b"[[1,2],[3]]",
        b"[[1,2],3]",
        b'[["a","b"]]',
        b"[[[1,2]]]",
        b"[1,2,3]",
        b"[" * 100_0,
        b'{"z":[1,2]}',
        b'{"x":1}',
        b'{"x":{}}',
        b'{"inputs":[]}',
        b'{"inputs":3}',
        b"[1e999,1]",
        b"\xff",
    ],
)
def test_json_that_is_not_the_model_s_input_is_refused(files: Files, text: bytes) -> None:
    with pytest.raises(AIGovToolError):
        files.read("a.json", text)
