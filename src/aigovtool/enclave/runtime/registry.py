"""
Which runtime runs a model: the one that has the name of its format, as the signed manifest says.

Rule 1: `onnx` and `gguf` are ours. Others come from distributions that are installed beside us and
        name them in the entry point group ``aigovtool.runtimes``.
Rule 2: a name has one owner. Who installs another `onnx`, or the same name twice, is told so, and
        neither is used: the custodian seals for one of them, and no order of installation decides.
Rule 3: what an entry point names is imported when a model of its format is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from aigovtool.enclave.runtime.base import Runtime, RuntimeOptions
from aigovtool.errors import AIGovToolError, ConfigurationError, MalformedError
from aigovtool.sealing.manifest import SealedManifest

GROUP = "aigovtool.runtimes"
OURS = (
    EntryPoint("onnx", "aigovtool.enclave.runtime.onnx:OnnxRuntime", GROUP),
    EntryPoint("gguf", "aigovtool.enclave.runtime.gguf:GgufRuntime", GROUP),
)

MakeRuntime = Callable[[SealedManifest, RuntimeOptions], Runtime]
"""What an entry point names. Raises ConfigurationError when something that it needs is missing."""


def runtime_for(manifest: SealedManifest, options: RuntimeOptions) -> Runtime:
    """
    Return a runtime for the model of *manifest*.

    Raises:
        MalformedError: there is none for its format.
        ConfigurationError: there are two, or what it needs is not installed.
    """
    found = [*OURS, *entry_points(group=GROUP)]
    chosen = [one for one in found if one.name == manifest.format]
    if not chosen:
        raise MalformedError(
            "no runtime for models of this format",
            code="model.format",
            expected="one of " + ", ".join(sorted({one.name for one in found})),
            came=manifest.format,
            mend="install a runtime for it, or lend the model in another format",
        )
    if len(chosen) > 1:
        raise ConfigurationError(
            f"several runtimes are installed for the format {manifest.format!r}",
            expected="one",
            came=", ".join(one.value for one in chosen),
            mend="uninstall the others",
        )
    return _imported(chosen[0])(manifest, options)


def _imported(entry_point: EntryPoint) -> MakeRuntime:
    try:
        make: MakeRuntime = entry_point.load()
    except AIGovToolError:
        raise
    except Exception as error:  # noqa: BLE001 - importing runs any code
        raise ConfigurationError(
            f"the runtime for the format {entry_point.name!r} cannot be imported",
            came=f"{type(error).__name__} from {entry_point.value}",
            mend="install it anew, with what it needs",
        ) from None
    return make
