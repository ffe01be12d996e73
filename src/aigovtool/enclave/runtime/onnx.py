"""
ONNX models on onnxruntime, loaded from memory only.

Rule 1: nothing of the model touches a disk: the graph goes in as bytes, weights by
        `add_external_initializers_from_files_in_memory`, which also takes models over 2 GB.
Rule 2: the runtime's own messages may quote tensors, so they go nowhere; a failure names its kind.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import onnxruntime as ort

from aigovtool.enclave.runtime.base import RuntimeOptions
from aigovtool.enclave.runtime.cores import usable_cores
from aigovtool.enclave.runtime.speed import SLOW, Speed, measure, work_is_known
from aigovtool.enclave.runtime.weights import lend_weights
from aigovtool.enclave.secret_bytes import overwrite
from aigovtool.errors import (
    AIGovToolError,
    BadTensorError,
    MalformedError,
    UnavailableError,
    VerificationError,
)
from aigovtool.sealing.batch import batch_of, items_in
from aigovtool.sealing.interface import Batch, ClassificationOutput, Together
from aigovtool.sealing.manifest import FileEntry, SealedManifest
from aigovtool.sealing.memory import anonymous_memory
from aigovtool.wire.oip import ModelMetadata, TensorSignature
from aigovtool.wire.tensors import BYTES, Array

_log = logging.getLogger(__name__)

PLATFORM = "onnx_onnxv1"  # as other servers of the protocol name it
_LOG_FATAL = 4
_PROVIDERS = ["CPUExecutionProvider"]
_IN_PLACE = "session.use_external_initializer_file_buffers_directly"
_UNPACKED = "session.disable_prepacking"


class OnnxRun:
    """
    One run of a session. Its options are its own, so that it can be terminated alone.

    Args:
        weights: the memory that the session reads, which stays mapped as long as the run is here.
    """

    __slots__ = ("_options", "_session", "_weights")

    def __init__(self, session: ort.InferenceSession, weights: Sequence[memoryview]) -> None:
        self._session = session
        self._weights = weights
        self._options = ort.RunOptions()

    def execute(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        try:
            arrays = self._session.run(list(outputs), inputs, self._options)
        except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base (Rule 2)
            raise self._explain(error) from None
        return {
            name: _from_strings(name, array) for name, array in zip(outputs, arrays, strict=True)
        }

    def terminate(self) -> None:
        self._options.terminate = True

    def _explain(self, error: Exception) -> AIGovToolError:
        if self._options.terminate:
            return UnavailableError("the computation was ended", code="query.terminated")
        return BadTensorError(
            "the model cannot compute with these tensors",
            code="bad_tensor.compute",
            came=type(error).__name__,
        )


class OnnxModel:
    """
    A session, and the tensors of its model as the signed manifest gives them.

    Args:
        weights: memory from which the session computes.
        wipe: overwrites it, when nothing computes any more.
    """

    takes: Literal["tensors"] = "tensors"

    def __init__(
        self,
        session: ort.InferenceSession,
        manifest: SealedManifest,
        *,
        weights: Iterable[memoryview] = (),
        wipe: Callable[[], None] | None = None,
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._weights = tuple(memoryview(one) for one in weights)
        self._wipe = wipe
        self.metadata = ModelMetadata(
            name=manifest.name,
            versions=(manifest.version,),
            platform=PLATFORM,
            inputs=_signatures(manifest.signature.inputs),
            outputs=_signatures(manifest.signature.outputs),
        )
        self.labels: Mapping[str, Sequence[str]] = labels_of(manifest)
        self._batch = batch_of(manifest)
        self._texts = [one.name for one in self.metadata.inputs if one.datatype == BYTES]
        self.speed = SLOW
        self.together: Together | None = None

    @classmethod
    def load(
        cls,
        manifest: SealedManifest,
        entry: bytes,
        external: Mapping[str, memoryview],
        *,
        intra_op_threads: int,
        packed: bool = True,
        wipe: Callable[[], None] | None = None,
    ) -> OnnxModel:
        """
        Load a model, which computes from the memory of its external files until it is closed.

        Args:
            entry: the graph, which the runtime copies.
            external: files in memory, by the names under which the graph refers to them.
            intra_op_threads: of one computation; 0 for as many as there are cores, or one where a
                computation is so short that sharing it out costs more.
            packed: let the runtime keep a second copy of weights, in the order in which its
                kernels read them.
            wipe: overwrites the memory of *external*; called by `close`, not when loading fails.

        Raises:
            MalformedError: not a model that this runtime can run.
            VerificationError: its tensors are not those of the manifest.
        """

        def opened(threads: int) -> OnnxModel:
            session = _open(entry, external, intra_op_threads=threads, packed=packed)
            model = cls(session, manifest, weights=external.values(), wipe=wipe)
            model._check(session)
            model.speed = model._measured(session) if work_is_known(entry) else SLOW
            model.together = _together(model._batch, model.speed)
            return model

        model = opened(intra_op_threads or usable_cores())
        if intra_op_threads == 0 and model.speed.at_once and usable_cores() > 1:
            model = opened(1)
        return model

    def price(self, inputs: Mapping[str, Array]) -> int:
        return items_in(self._batch, {name: array.shape for name, array in inputs.items()})

    def prepare(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if not self._texts:
            return inputs
        prepared = dict(inputs)
        for name in self._texts:
            prepared[name] = _to_strings(name, inputs[name])
        return prepared

    def new_run(self) -> OnnxRun:
        if self._session is None:
            raise UnavailableError("the model is not loaded")
        return OnnxRun(self._session, self._weights)

    def close(self) -> None:
        self._session = None
        self._weights = ()
        if self._wipe is not None:
            self._wipe()

    def _measured(self, session: ort.InferenceSession) -> Speed:
        names = [one.name for one in self.metadata.outputs]
        return measure(
            lambda arrays: session.run(names, arrays),
            inputs=self.metadata.inputs,
            outputs=self.metadata.outputs,
            batch=self._batch,
            cores=usable_cores(),
        )

    def _check(self, session: ort.InferenceSession) -> None:
        for side, ours, theirs in (
            ("inputs", self.metadata.inputs, session.get_inputs()),
            ("outputs", self.metadata.outputs, session.get_outputs()),
        ):
            if [one.name for one in ours] != [one.name for one in theirs]:
                raise VerificationError(
                    f"the model's {side} are not those of its manifest",
                    code="model.signature",
                    expected=", ".join(one.name for one in ours),
                    came=", ".join(str(one.name) for one in theirs),
                )


class OnnxRuntime:
    """Decrypts to anonymous memory, and computes from there. Implements `base.Runtime`."""

    def __init__(self, manifest: SealedManifest, options: RuntimeOptions) -> None:
        self._manifest = manifest
        self._options = options
        self._memory: dict[str, memoryview] = {}

    def allocate(self, file: FileEntry) -> memoryview:
        self._memory[file.name] = anonymous_memory(file.size)
        return self._memory[file.name]

    def load(self, files: Mapping[str, memoryview], wipe: Callable[[], None]) -> OnnxModel:
        entry = self._manifest.entry
        graph, lent = lend_weights(self._memory.pop(entry), entry)
        self._memory.clear()
        external = {name: view for name, view in files.items() if lent or name != entry}
        try:
            model = OnnxModel.load(
                self._manifest,
                graph,
                external,
                intra_op_threads=self._options.intra_op_threads,
                packed=self._manifest.plaintext_size <= self._options.packed_bytes,
                wipe=wipe,
            )
        finally:
            overwrite(graph)
        if not external:
            wipe()  # onnxruntime has copied the graph, and nothing else was lent
        return model


def _together(batch: Batch | None, speed: Speed) -> Together | None:
    """Return how queries may share a run, as the manifest wants it and as rows stand alone."""
    if batch is None or isinstance(batch.together, msgspec.UnsetType) or speed.at_once:
        return None
    if speed.together < batch.together.max_items:
        _log.warning(
            "%d of the %d items that the manifest wants in one run stand alone",
            speed.together,
            batch.together.max_items,
        )
    if speed.together == 1:
        return None
    return msgspec.structs.replace(batch.together, max_items=speed.together)


def labels_of(manifest: SealedManifest) -> dict[str, tuple[str, ...]]:
    """Return the labels of outputs that hold one score for each, as the custodian signed them."""
    described = () if manifest.interface is None else manifest.interface.outputs
    return {one.name: one.labels for one in described if isinstance(one, ClassificationOutput)}


def _open(
    entry: bytes, external: Mapping[str, memoryview], *, intra_op_threads: int, packed: bool
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.intra_op_num_threads = intra_op_threads
    options.add_session_config_entry(_IN_PLACE, "1")
    if not packed:
        options.add_session_config_entry(_UNPACKED, "1")
    try:
        if external:
            options.add_external_initializers_from_files_in_memory(
                list(external), list(external.values()), [len(x) for x in external.values()]
            )
        session = ort.InferenceSession(entry, options, providers=_PROVIDERS, enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base (Rule 2)
        raise MalformedError(
            "onnxruntime cannot load the model",
            code="model.load",
            came=type(error).__name__,
            mend="seal a model that this version of onnxruntime loads",
        ) from None
    session._model_bytes = None  # it keeps the whole file, for a fallback that we refuse
    return session


def _signatures(specs: Sequence[Any]) -> tuple[TensorSignature, ...]:
    return tuple(
        TensorSignature(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs
    )


def _to_strings(name: str, array: Array) -> Array:
    """onnxruntime's strings are Unicode; the protocol's ``BYTES`` are any bytes."""
    try:
        texts = [element.decode() for element in array.flat]
    except UnicodeDecodeError:
        raise BadTensorError(
            f"the tensor {name!r} holds bytes that are not UTF-8, which this model needs",
            code="bad_tensor.text",
        ) from None
    return _objects(texts, array.shape)


def _from_strings(name: str, array: Any) -> Array:
    if not isinstance(array, np.ndarray):
        raise BadTensorError(
            f"the output {name!r} is not a tensor, and cannot be sent",
            code="bad_tensor.output",
            came=type(array).__name__,
        )
    if array.dtype != object:
        return array
    return _objects([element.encode() for element in array.flat], array.shape)


def _objects(elements: list[Any], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)
