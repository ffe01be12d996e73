"""What a batch costs follows from what the custodian signed."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from aigovtool.errors import BadTensorError, MalformedError
from aigovtool.sealing.batch import batch_of, default_batch, items_in
from aigovtool.sealing.chunked import sealed_size
from aigovtool.sealing.interface import (
    MAX_BATCH_ITEMS,
    Batch,
    ModelInterface,
    TensorInput,
    TensorOutput,
    Together,
    decode_interface,
    encode_interface,
)
from aigovtool.sealing.manifest import (
    BodyEntry,
    FileEntry,
    ModelSignature,
    SealedManifest,
    TensorSpec,
)
from aigovtool.sealing.signature import derive_interface


def signature(**inputs: tuple[int, ...]) -> ModelSignature:
    return ModelSignature(
        inputs=tuple(TensorSpec(name=n, datatype="FP32", shape=s) for n, s in inputs.items()),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
    )


def interface(
    batch: Batch | msgspec.UnsetType | None = msgspec.UNSET, **inputs: tuple[int, ...]
) -> ModelInterface:
    return ModelInterface(
        inputs=tuple(TensorInput(name=n, datatype="FP32", shape=s) for n, s in inputs.items()),
        outputs=(TensorOutput(name="y"),),
        batch=batch,
    )


def manifest_of(signature: ModelSignature, interface: ModelInterface | None) -> SealedManifest:
    return SealedManifest(
        manifest_version=1,
        name="tiny",
        version="1",
        format="onnx",
        files=(FileEntry(name="model.onnx", size=1, sha256="00" * 32),),
        entry="model.onnx",
        body=BodyEntry(size=sealed_size(1), header="00" * 56, sha256="00" * 32),
        signature=signature,
        interface=interface,
        licence="",
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("inputs", "axes"),
    [
        ({"x": (-1, 4)}, {"x": 0}),
        ({"x": (-1,), "z": (-1, 3, 3)}, {"x": 0, "z": 0}),
        ({"x": (1, 4)}, None),
        ({"x": (8, -1)}, None),
        ({"x": (-1, 4), "threshold": (1,)}, None),
        ({"x": (-1, 4), "scalar": ()}, None),
        ({"x": ()}, None),
    ],
)
def test_a_first_dimension_free_in_every_input_is_the_batch(
    inputs: dict[str, tuple[int, ...]], axes: dict[str, int] | None
) -> None:
    batch = default_batch(signature(**inputs))
    assert (None if batch is None else batch.axes) == axes


def test_a_language_model_has_no_batch_of_tensors() -> None:
    assert default_batch(ModelSignature()) is None


def test_the_custodians_word_goes_before_the_shapes() -> None:
    one, free = signature(x=(-1, 4)), interface(None, x=(-1, 4))
    assert batch_of(manifest_of(one, free)) is None
    said = Batch(axes={"state": 1}, max_items=8)
    manifest = manifest_of(
        signature(x=(-1, 4), state=(2, -1)), interface(said, x=(-1, 4), state=(2, -1))
    )
    assert batch_of(manifest) == said
    assert batch_of(manifest_of(one, interface(x=(-1, 4)))) == default_batch(one)
    assert batch_of(manifest_of(one, None)) == default_batch(one)


def test_the_price_is_the_number_of_items() -> None:
    batch = Batch(axes={"x": 0, "state": 1}, max_items=64)
    assert items_in(batch, {"x": (50, 4), "state": (2, 50), "rate": ()}) == 50
    assert items_in(None, {"x": (50, 4)}) == 1


@pytest.mark.parametrize("counts", [(1, 50), (50, 1), (0, 0), (65, 65)])
def test_a_batch_that_would_be_computed_for_less_is_refused(counts: tuple[int, int]) -> None:
    batch = Batch(axes={"a": 0, "b": 0}, max_items=64)
    with pytest.raises(BadTensorError):
        items_in(batch, {"a": (counts[0], 2), "b": (counts[1], 2)})


@pytest.mark.parametrize("axes", [{"x": 2}, {"nowhere": 0}])
def test_a_batch_where_the_model_has_no_axis_is_not_sealed(axes: dict[str, int]) -> None:
    with pytest.raises(MalformedError):
        manifest_of(signature(x=(-1, 4)), interface(Batch(axes=axes), x=(-1, 4)))


@pytest.mark.parametrize(
    "text",
    [
        '{"axes": {}}',
        '{"axes": {"x": -1}}',
        '{"axes": {"x": 0}, "max_items": 0}',
        f'{{"axes": {{"x": 0}}, "max_items": {MAX_BATCH_ITEMS + 1}}}',
        '{"axes": {"x": 0}, "free": true}',
        '{"axes": {"x": 0}, "together": {}}',
        '{"axes": {"x": 0}, "together": {"max_items": 1}}',
        '{"axes": {"x": 0}, "together": {"max_items": 8, "max_delay_ms": 1000.5}}',
        '{"axes": {"x": 0}, "together": {"max_items": 8, "max_delay_ms": -1}}',
        "0",
    ],
)
def test_a_batch_out_of_bounds_is_refused(text: str) -> None:
    body = encode_interface(interface(x=(-1, 4))).rstrip()[:-1] + f', "batch": {text}}}'.encode()
    with pytest.raises(MalformedError):
        decode_interface(body)


@pytest.mark.parametrize(
    "batch",
    [
        msgspec.UNSET,
        None,
        Batch(axes={"x": 0}, max_items=3),
        Batch(axes={"x": 0}, together=Together(max_items=32, max_delay_ms=1.5)),
    ],
)
def test_an_interface_is_read_as_it_was_written(batch: Batch | msgspec.UnsetType | None) -> None:
    written = interface(batch, x=(-1, 4))
    assert decode_interface(encode_interface(written)) == written
    assert (b'"batch"' in encode_interface(written)) is (batch is not msgspec.UNSET)
    joined = isinstance(batch, Batch) and isinstance(batch.together, Together)
    assert (b'"together"' in encode_interface(written)) is joined


class Tensor:
    type = "tensor(float)"

    def __init__(self, name: str, shape: list[int | str | None]) -> None:
        self.name, self.shape = name, shape


def test_dimensions_of_different_names_are_no_batch() -> None:
    y = [Tensor("y", [1])]
    shared = derive_interface([Tensor("a", ["n", 2]), Tensor("b", ["n"])], y)
    assert shared.batch is msgspec.UNSET
    apart = derive_interface([Tensor("a", ["n", 2]), Tensor("b", ["length"])], y)
    assert apart.batch is None


def test_sealed_before_there_was_a_batch() -> None:
    manifest: SealedManifest = manifest_of(signature(x=(-1, 4)), interface(x=(-1, 4)))
    assert b"batch" not in msgspec.json.encode(manifest)
