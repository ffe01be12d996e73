"""The signed format chooses the runtime, and whoever is installed beside us may bring one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aigovtool.crypto.signing import SigningKey
from aigovtool.enclave.cache import BodyCache
from aigovtool.enclave.loader import Loader
from aigovtool.enclave.progress import LoggedProgress
from aigovtool.enclave.runtime import registry
from aigovtool.enclave.runtime.base import Piece, Prompt, RuntimeOptions
from aigovtool.enclave.runtime.onnx import OnnxRuntime
from aigovtool.enclave.runtime.registry import runtime_for
from aigovtool.errors import BadPromptError, ConfigurationError, MalformedError, UnavailableError
from aigovtool.ids import ConsumerId
from aigovtool.sealing.manifest import ModelSignature
from aigovtool.simulation.measure import measure

from . import models
from .test_loader import Source

EXAMPLE = Path(__file__).parents[2] / "examples" / "runtime_echo"
ALICE = ConsumerId("cons_alice")
OPTIONS = RuntimeOptions(slots=2, context=64)


def echoing(folder: Path, key: SigningKey) -> models.Sealed:
    files = ({"word.txt": b"yes"}, ModelSignature())
    return models.sealed(folder, key, files, format="echo", entry="word.txt")


def install(folder: Path, entry_points: str, name: str = "aigovtool-runtime-echo") -> None:
    """Put a distribution on the path, as an installer would."""
    about = folder / f"{name.replace('-', '_')}-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "RECORD").write_text("echo_runtime.py,sha256=abc,1\n")
    (about / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("echo_runtime", None)


@pytest.fixture
def installed(site: Path) -> Path:
    shutil.copy(EXAMPLE / "echo_runtime.py", site)
    text = (EXAMPLE / "pyproject.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("echo = "))
    install(site, "[aigovtool.runtimes]\n" + line.replace('"', "") + "\n")
    return site


def loader(sealed: models.Sealed) -> tuple[Loader, Source]:
    source = Source(sealed)
    return (
        Loader(source=source, cache=BodyCache(None), options=OPTIONS, progress=LoggedProgress()),
        source,
    )


async def test_a_format_without_a_runtime_is_refused_before_anything_is_fetched(
    tmp_path: Path, key: SigningKey
) -> None:
    sealed = echoing(tmp_path, key)
    loading, source = loader(sealed)
    with pytest.raises(MalformedError, match="no runtime") as caught:
        await loading.load(sealed.verified, sealed.content_key)
    assert "one of gguf, onnx; came echo" in str(caught.value)
    assert source.offsets == []


def test_onnx_is_run_by_ours(tmp_path: Path, key: SigningKey) -> None:
    sealed = models.sealed(tmp_path, key, models.doubling())
    assert isinstance(runtime_for(sealed.verified.manifest, OPTIONS), OnnxRuntime)


async def test_an_installed_runtime_loads_and_answers_a_sealed_model(
    tmp_path: Path, key: SigningKey, installed: Path
) -> None:
    sealed = echoing(tmp_path, key)
    loading, _ = loader(sealed)
    model = await loading.load(sealed.verified, sealed.content_key)
    assert (model.name, model.version, model.slots, model.context) == ("tiny", "1", 2, 64)
    body = {"messages": [{"role": "user", "content": "how are you"}]}
    assert model.count("chat", body) == 3
    assert answer(model, Prompt("chat", body, 3, 9)) == ("yes how are you ", 4, "stop")
    assert answer(model, Prompt("chat", body, 3, 2)) == ("yes how ", 2, "length")
    assert answer(model, Prompt("completion", {"prompt": "x"}, 1, 9)) == ("yes x ", 2, "stop")
    told: list[Piece] = []
    stopped = model.generate(Prompt("chat", body, 3, 9), ALICE, told.append)
    stopped.terminate()
    with pytest.raises(UnavailableError):
        stopped.execute()
    assert told == []
    with pytest.raises(BadPromptError):
        model.count("completion", {"prompt": [1, 2]})
    with pytest.raises(BadPromptError):
        model.embed(["x"])
    memory = model._weights
    model.close()
    with pytest.raises(ValueError, match="released"):
        memory[0]


def answer(model, prompt: Prompt) -> tuple[str, int, str]:
    told: list[Piece] = []
    model.generate(prompt, ALICE, told.append).execute()
    choices = [piece.chunk["choices"][0] for piece in told]
    text = "".join(one["delta"]["content"] if "delta" in one else one["text"] for one in choices)
    assert [one["finish_reason"] for one in choices[:-1]] == [None] * (len(told) - 1)
    return text, told[-1].produced, choices[-1]["finish_reason"]


@pytest.mark.parametrize("name", ["onnx", "gguf"])
def test_nobody_takes_the_place_of_a_runtime_of_ours(
    tmp_path: Path, key: SigningKey, site: Path, name: str
) -> None:
    install(site, f"[aigovtool.runtimes]\n{name} = evil:Runtime\n")
    sealed = models.sealed(tmp_path, key, models.doubling(), format=name)
    with pytest.raises(ConfigurationError, match="several runtimes"):
        runtime_for(sealed.verified.manifest, OPTIONS)


def test_two_runtimes_of_one_name_are_refused(
    tmp_path: Path, key: SigningKey, installed: Path
) -> None:
    install(installed, "[aigovtool.runtimes]\necho = evil:Runtime\n", name="other")
    with pytest.raises(ConfigurationError, match="several") as caught:
        runtime_for(echoing(tmp_path, key).verified.manifest, OPTIONS)
    assert "evil:Runtime" in str(caught.value)


@pytest.mark.parametrize("module", ["import nothing_of_this_name", "1 / 0", "x = 1"])
def test_a_runtime_that_cannot_be_imported_is_the_borrowers_to_mend(
    tmp_path: Path, key: SigningKey, site: Path, module: str
) -> None:
    (site / "echo_runtime.py").write_text(module)
    install(site, "[aigovtool.runtimes]\necho = echo_runtime:EchoRuntime\n")
    with pytest.raises(ConfigurationError, match="cannot be imported"):
        runtime_for(echoing(tmp_path, key).verified.manifest, OPTIONS)


def test_a_runtime_beside_ours_changes_the_measurement(installed: Path) -> None:
    lines = set(measure().lines)
    assert any(line.startswith("distribution aigovtool-runtime-echo 1 ") for line in lines)
    record = next(installed.glob("*.dist-info/RECORD"))
    record.write_text(record.read_text().replace("abc", "abd"))
    assert set(measure().lines) != lines


def test_what_we_register_is_there() -> None:
    assert [one.name for one in registry.OURS] == ["onnx", "gguf"]
    for one in registry.OURS:
        assert one.load() is not None
