"""What `docs/model-interface.md` shows is what the program reads."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from aigovtool.sealing import interface

PAGE = (Path(__file__).parents[1] / "docs" / "model-interface.md").read_text()


def test_the_example_is_a_model_interface() -> None:
    example = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]
    read = interface.decode_interface(example.encode())
    assert read.title == "handwritten digits"


def test_every_field_is_on_the_page() -> None:
    for kind in (
        interface.ModelInterface,
        interface.ImageInput,
        interface.TextInput,
        interface.TensorInput,
        interface.ClassificationOutput,
    ):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in PAGE or f'"{field.name}"' in PAGE, field.name
