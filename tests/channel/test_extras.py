"""What is not installed is said, with how to install it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from aigovtool.channel import extras
from aigovtool.errors import ConfigurationError


@pytest.mark.parametrize("missing", ["grpc", "google.protobuf"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(
        extras, "find_spec", lambda name: None if name == missing else find_spec(name)
    )
    with pytest.raises(ConfigurationError) as caught:
        extras.prepare_grpc()
    assert caught.value.reasons[0].mend == "pip install 'aigovtool[grpc]'"


def test_a_choice_of_the_operators_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    extras.prepare_grpc()
    assert extras.os.environ["GRPC_VERBOSITY"] == "debug"
