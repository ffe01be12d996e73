"""Pictures become tensors by the described steps, and nothing is guessed."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aigovtool.client import preprocess
from aigovtool.client.preprocess import image_tensor
from aigovtool.errors import AIGovToolError, BadTensorError, MalformedError, TooLargeError
from aigovtool.sealing.interface import ImageInput


def spec(**fields: Any) -> ImageInput:
    return ImageInput(**({"name": "x", "width": 2, "height": 2, "resize": "nearest"} | fields))


def png(array: Any, *, mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(np.asarray(array))
    return saved(image.convert(mode) if mode else image, **options)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def u8(*rows: Any) -> Any:
    return np.array(rows, np.uint8)


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
FLAG = png(u8([RED, GREEN], [BLUE, WHITE]))


def test_covidnet_steps_match_its_own_code() -> None:
    """COVID-Net's process_image_file: crop_top 8 %, central_crop, resize, and division by 255."""
    pixels = np.random.default_rng(0).integers(0, 256, (700, 500, 3), np.uint8)
    covid = ImageInput(
        name="input_1:0", width=480, height=480, channels="bgr", crop_top=0.08,
        centre_crop=True, resize="opencv-linear", scale=1 / 255,
    )  # fmt: skip
    tensor = image_tensor(png(pixels), covid)
    assert (tensor.shape, tensor.dtype) == ((1, 480, 480, 3), np.float32)
    assert 0 <= tensor.min() < tensor.max() <= 1
    cut = pixels[int(700 * 0.08) :]
    offset = int((cut.shape[0] - 500) / 2)
    square = cut[offset : offset + 500]
    # 500 to 480: output pixel (239, 239) looks at 249.15 - 0.5, for one
    place = (239 + 0.5) * 500 / 480 - 0.5
    low, share = int(place), place - int(place)
    corner = square[low : low + 2, low : low + 2, ::-1].astype(float)
    across = corner[:, 0] * (1 - share) + corner[:, 1] * share
    expected = across[0] * (1 - share) + across[1] * share
    assert np.allclose(tensor[0, 239, 239] * 255, expected, atol=0.51)


def test_opencv_linear_is_within_one_of_opencv() -> None:
    """Values that cv2.resize of OpenCV 5.0.0 gave; Pillow's bilinear is far from them."""
    pixels = (np.arange(35).reshape(5, 7) ** 2 * 37 % 251).astype(np.uint8)
    opencv = np.array([[74, 160, 121], [96, 213, 141]])
    fields = {"width": 3, "height": 2, "channels": "grayscale", "layout": "NHW"}
    ours = image_tensor(png(pixels), spec(resize="opencv-linear", **fields))
    pillow = image_tensor(png(pixels), spec(resize="bilinear", **fields))
    assert np.abs(ours[0] - opencv).max() <= 1
    assert np.abs(pillow[0] - opencv).max() > 10


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("NHWC", [[[RED, GREEN], [BLUE, WHITE]]]),
        ("NCHW", [[[[255, 0], [0, 255]], [[0, 255], [0, 255]], [[0, 0], [255, 255]]]]),
        ("FLAT", [[*RED, *GREEN, *BLUE, *WHITE]]),
    ],
)
def test_each_layout_puts_values_where_it_says(layout: Any, expected: Any) -> None:
    described = spec(layout=layout)
    tensor = image_tensor(FLAG, described)
    assert tensor.shape == described.shape
    assert tensor.flags.c_contiguous
    assert np.array_equal(tensor, np.array(expected, np.float32))


def test_bgr_turns_the_channels_round() -> None:
    tensor = image_tensor(FLAG, spec(channels="bgr", datatype="UINT8"))
    assert tensor[0, 0, 0].tolist() == list(BLUE)


def test_scale_mean_and_std_are_applied_for_each_channel_in_that_order() -> None:
    tensor = image_tensor(
        FLAG, spec(scale=1 / 255, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0), datatype="FP64")
    )
    assert tensor[0, 0, 0].tolist() == [1.0, -1.0, 0.0]
    assert tensor[0, 1, 1].tolist() == [1.0, 3.0, 0.5]


def test_invert_comes_before_scale() -> None:
    grey = png(u8([0, 51], [204, 255]))
    tensor = image_tensor(
        grey, spec(channels="grayscale", layout="NHW", invert=True, scale=1 / 255)
    )
    assert np.allclose(tensor[0], [[1, 0.8], [0.2, 0]])


@pytest.mark.parametrize("datatype", ["UINT8", "INT16", "UINT64", "FP16", "FP32", "FP64"])
def test_each_datatype_holds_all_shades(datatype: Any) -> None:
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tensor = image_tensor(
        png(shades),
        spec(width=16, height=16, channels="grayscale", layout="NHW", datatype=datatype),
    )
    assert np.array_equal(tensor[0], shades)


def test_results_that_the_datatype_cannot_hold_are_refused_and_not_wrapped() -> None:
    for fields in (
        {"datatype": "INT8"},
        {"datatype": "UINT8", "mean": (1.0, 1.0, 1.0)},
        {"datatype": "FP16", "scale": 1000.0},
    ):
        with pytest.raises(BadTensorError):
            image_tensor(FLAG, spec(**fields))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 8), (8, 3)])
@pytest.mark.parametrize("crop_top", [0.0, 0.08, 0.5, 0.999999999999])
@pytest.mark.parametrize("resize", ["nearest", "box", "bicubic", "opencv-linear"])
def test_any_crop_of_any_picture_leaves_something(
    size: tuple[int, int], crop_top: float, resize: Any
) -> None:
    described = spec(crop_top=crop_top, centre_crop=True, resize=resize)
    assert image_tensor(saved(Image.new("RGB", size, "red")), described).shape == (1, 2, 2, 3)


def test_centre_crop_keeps_the_middle() -> None:
    wide = np.zeros((2, 6), np.uint8)
    wide[:, 2:4] = 7
    tensor = image_tensor(png(wide), spec(channels="grayscale", layout="NHW", centre_crop=True))
    assert tensor.tolist() == [[[7, 7], [7, 7]]]


def test_sixteen_bit_pictures_are_scaled_and_not_clipped() -> None:
    deep = np.array([[0, 255], [256, 65535]], np.uint16)
    tensor = image_tensor(png(deep), spec(channels="grayscale", layout="NHW"))
    assert tensor.tolist() == [[[0, 0], [1, 255]]]


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    lying = saved(Image.fromarray(u8([10, 20], [30, 40])), exif=exif)
    tensor = image_tensor(lying, spec(channels="grayscale", layout="NHW"))
    assert tensor.tolist() == [[[30, 10], [40, 20]]]


def test_pictures_whose_values_would_be_guessed_are_refused() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 200)]
    for data, word in (
        (saved(half), "transparent"),
        (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "frames"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "16 bits"),
    ):
        with pytest.raises(BadTensorError, match=word) as caught:
            image_tensor(data, spec())
        assert caught.value.reasons[0].mend is not None


def test_an_opaque_alpha_channel_and_a_palette_are_welcome() -> None:
    opaque = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    for image in (opaque, opaque.convert("RGB").quantize(2)):
        assert image_tensor(saved(image), spec())[0, 0, 0].tolist() == [1, 2, 3]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(MalformedError):  # TooLargeError, or Pillow's own limit
        image_tensor(bomb, spec())


def test_too_many_pixels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 3)
    with pytest.raises(TooLargeError) as caught:
        image_tensor(FLAG, spec())
    assert caught.value.reasons[0].came == "2 x 2"


def test_formats_that_do_more_than_pixels_are_not_opened() -> None:
    postscript = saved(Image.new("RGB", (2, 2)), "EPS")
    with pytest.raises(MalformedError):
        image_tensor(postscript, spec())


PICTURES = [
    saved(Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)), kind)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
]


@given(data=st.data())
def test_only_our_errors_leave_whatever_a_file_holds(data: st.DataObject) -> None:
    body = bytearray(data.draw(st.sampled_from(PICTURES) | st.binary(max_size=40)) or b"\0")
    for _ in range(data.draw(st.integers(0, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    try:
        tensor = image_tensor(cut, spec())
    except AIGovToolError:
        return
    assert tensor.shape == (1, 2, 2, 3)
