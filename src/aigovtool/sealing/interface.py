"""
What a model takes and gives, in words that a program can act on.

An ONNX file says "FP32, [1, 480, 480, 3]"; it does not say that the numbers are a chest X-ray
without its top 8 %, divided by 255. The custodian, who knows, says so in a `ModelInterface`, which
travels inside the signed manifest of the sealed model. The client then turns a file into tensors,
and tensors into an answer, for any model so described, and nobody ships code to a consumer.

Rule 1: a description is data. It names steps from a fixed list, and every number in it is bounded.
Rule 2: image steps run in one order: crop the top, centre-crop, resize, invert, scale, normalise,
        lay out.
Rule 3: datatypes are those of the Open Inference Protocol (``FP32``, ``BYTES``, …).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from aigovtool.errors import MalformedError, TooLargeError

MAX_INTERFACE_BYTES = 1 << 20  # a thousand labels of a word each are some 20 kB
MAX_TENSORS = 64
MAX_RANK = 16
MAX_ELEMENTS = 1 << 40
MAX_SIDE_PX = 8192
MAX_LABELS = 100_000
MAX_TEXT_BYTES = 1 << 24
MAX_SCALE = 1e6
MAX_BATCH_ITEMS = 1 << 20  # what one lease must be able to pay for decides long before
MAX_TOGETHER_ITEMS = 1024
MAX_DELAY_MS = 1000.0

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]
NumericDatatype = Literal[
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
]
Resize = Literal["nearest", "box", "bilinear", "bicubic", "lanczos", "opencv-linear"]

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Sentence = Annotated[str, Meta(max_length=2000)]
Label = Annotated[str, Meta(min_length=1, max_length=256)]
SidePx = Annotated[int, Meta(ge=1, le=MAX_SIDE_PX)]
Factor = Annotated[float, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]
PositiveFactor = Annotated[float, Meta(gt=0, le=MAX_SCALE)]
Shape = Annotated[
    tuple[Annotated[int, Meta(ge=-1, le=MAX_ELEMENTS)], ...], Meta(max_length=MAX_RANK)
]


class ImageInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="image",
):
    """
    A tensor made from one picture.

    Args:
        name: the tensor's name in the model.
        datatype: what the numbers become after all steps.
        width, height: pixels after resizing.
        channels: ``bgr`` is the order of OpenCV, which many models were trained with.
        crop_top: the fraction of the height that is cut off at the top, in [0, 1).
        centre_crop: whether the largest centred square is kept, before resizing.
        resize: the filter, as Pillow names it; ``nearest`` keeps exact values when shrinking a
            picture made of blocks. ``opencv-linear`` is OpenCV's INTER_LINEAR, which, unlike
            Pillow's ``bilinear``, does not smooth when it shrinks.
        invert: whether v becomes 255 - v: for models trained on light strokes on a dark ground.
        scale: every value of 0 to 255 is multiplied by it, so 1/255 gives 0 to 1.
        mean, std: for each channel, after scaling, (v - mean) / std; empty for none.
        layout: ``NHWC`` is (1, height, width, channels), ``NCHW`` (1, channels, height, width),
            ``NHW`` (1, height, width) for grayscale, ``FLAT`` (1, height * width * channels).
    """

    name: Name
    datatype: NumericDatatype = "FP32"
    width: SidePx
    height: SidePx
    channels: Literal["rgb", "bgr", "grayscale"] = "rgb"
    crop_top: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    centre_crop: bool = False
    resize: Resize = "bilinear"
    invert: bool = False
    scale: PositiveFactor = 1.0
    mean: Annotated[tuple[Factor, ...], Meta(max_length=3)] = ()
    std: Annotated[tuple[PositiveFactor, ...], Meta(max_length=3)] = ()
    layout: Literal["NHWC", "NCHW", "NHW", "FLAT"] = "NHWC"

    def __post_init__(self) -> None:
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channel_count):
                raise MalformedError(
                    f"{field} of input {self.name!r} does not fit its channels",
                    code="interface.channels",
                    expected=f"{self.channel_count} numbers, or none",
                    came=f"{len(values)} numbers",
                )
        if self.layout == "NHW" and self.channel_count != 1:
            raise MalformedError(
                f"layout NHW of input {self.name!r} has no place for colours",
                code="interface.layout",
                expected="grayscale",
                came=self.channels,
            )

    @property
    def channel_count(self) -> int:
        """1 for grayscale, else 3."""
        return 1 if self.channels == "grayscale" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape, with a batch of one in front."""
        height, width, depth = self.height, self.width, self.channel_count
        return {
            "NHWC": (1, height, width, depth),
            "NCHW": (1, depth, height, width),
            "NHW": (1, height, width),
            "FLAT": (1, height * width * depth),
        }[self.layout]


class TextInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="text",
):
    """
    A ``BYTES`` tensor of one element, made from a text file.

    Args:
        name: the tensor's name in the model.
        encoding: how the text is written into the element.
        shape: ones only, such as (1,) or (1, 1).
        max_bytes: a longer text is refused before it is sent.
    """

    name: Name
    encoding: Literal["utf-8", "utf-16-le", "latin-1", "ascii"] = "utf-8"
    shape: Shape = (1,)
    max_bytes: Annotated[int, Meta(ge=1, le=MAX_TEXT_BYTES)] = 1 << 16

    def __post_init__(self) -> None:
        if any(dimension != 1 for dimension in self.shape):
            raise MalformedError(
                f"text input {self.name!r} holds more than one text",
                code="interface.shape",
                expected="a shape of ones",
                came=str(list(self.shape)),
            )

    @property
    def datatype(self) -> Datatype:
        """Always ``BYTES``."""
        return "BYTES"


class TensorInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="tensor",
):
    """A tensor that the consumer gives as it is (``.npy``, ``.npz`` or JSON); -1 is any length."""

    name: Name
    datatype: Datatype
    shape: Shape

    def __post_init__(self) -> None:
        if math.prod(abs(dimension) for dimension in self.shape) > MAX_ELEMENTS:
            raise MalformedError(
                f"input {self.name!r} is larger than any memory",
                code="interface.shape",
                expected=f"at most {MAX_ELEMENTS} elements",
                came=str(list(self.shape)),
            )


class ClassificationOutput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="classification",
):
    """
    Scores, one for each label, along the last axis.

    Args:
        name: the tensor's name in the model.
        labels: in the order of the scores.
        softmax: whether the scores are logits that a softmax turns into probabilities.
        top_k: how many labels an answer for people shows.
    """

    name: Name
    labels: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=MAX_LABELS)]
    softmax: bool
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 3

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels):
            raise MalformedError(
                f"output {self.name!r} has a label twice",
                code="interface.labels",
                expected="every label once",
            )


class TensorOutput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="tensor",
):
    """A tensor that is given back as it is."""

    name: Name


class Together(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How queries of several requests are computed in one run. Nothing of it is charged for.

    Args:
        max_items: of all queries in a run.
        max_delay_ms: how long a query may wait for others to come. With 0 only those share a run
            that wait anyway, since all compute threads are busy.
        across_consumers: whether they may be of several consumers, for whom the model's maker then
            vouches: no input of one changes what another one gets.
    """

    max_items: Annotated[int, Meta(ge=2, le=MAX_TOGETHER_ITEMS)]
    max_delay_ms: Annotated[float, Meta(ge=0, le=MAX_DELAY_MS)] = 0.0
    across_consumers: bool = False


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How the model takes several items in one query; each costs one credit.

    Args:
        axes: for each input that holds a batch, the axis along which its items lie, from 0.
        max_items: a larger batch is refused.
        together: how queries that come at one time are computed; left out, each by itself.
    """

    axes: Annotated[
        dict[Name, Annotated[int, Meta(ge=0, lt=MAX_RANK)]],
        Meta(min_length=1, max_length=MAX_TENSORS),
    ]
    max_items: Annotated[int, Meta(ge=1, le=MAX_BATCH_ITEMS)] = MAX_BATCH_ITEMS
    together: Together | msgspec.UnsetType = msgspec.UNSET


InputDescription = ImageInput | TextInput | TensorInput
OutputDescription = ClassificationOutput | TensorOutput


class ModelInterface(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    How to ask a model, and how to read what it says.

    Args:
        version: of this format.
        title: what the model is, in a few words.
        notice: shown with every answer, such as "not a medical device"; empty for none.
        inputs: all inputs of the model, in its order.
        outputs: the outputs that a client asks for, in the order in which they are shown.
        batch: how items are counted and charged; null for a query that is one item whatever its
            shapes. Left out, a first dimension that is free in every input is the batch's.
    """

    version: Literal[1] = 1
    title: Annotated[str, Meta(max_length=200)] = ""
    notice: Sentence = ""
    inputs: Annotated[tuple[InputDescription, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[tuple[OutputDescription, ...], Meta(min_length=1, max_length=MAX_TENSORS)]
    batch: Batch | msgspec.UnsetType | None = msgspec.UNSET

    def __post_init__(self) -> None:
        for side, names in (
            ("input", [tensor.name for tensor in self.inputs]),
            ("output", [tensor.name for tensor in self.outputs]),
        ):
            if len(set(names)) != len(names):
                raise MalformedError(
                    f"the interface describes an {side} twice",
                    code="interface.name",
                    expected="every name once",
                )


_decoder = msgspec.json.Decoder(ModelInterface)


def decode_interface(body: bytes) -> ModelInterface:
    """
    Read an ``interface.json``.

    Raises:
        TooLargeError: more than `MAX_INTERFACE_BYTES`.
        MalformedError: not JSON, an unknown or missing field, or a value out of its bounds.
    """
    if len(body) > MAX_INTERFACE_BYTES:
        raise TooLargeError(
            "model interface too large",
            expected=f"at most {MAX_INTERFACE_BYTES} bytes",
            came=f"{len(body)} bytes",
        )
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(
            f"not a model interface: {error}",
            code="interface.malformed",
            mend="see docs/model-interface.md",
        ) from None


def encode_interface(interface: ModelInterface) -> bytes:
    """Return the interface as indented JSON with a newline at its end."""
    return msgspec.json.format(msgspec.json.encode(interface), indent=2) + b"\n"
