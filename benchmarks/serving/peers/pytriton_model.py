"""NVIDIA's pytriton, a Triton server around a Python function: MODEL NAME PORT."""

import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    # Triton's Python backend brings a libpython of its own and takes the standard library from
    # here; another patch release of it does not start: "no attribute '_recursion_count'"
    library = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
    if ".so" in library.name and library.exists():
        os.environ["LD_PRELOAD"] = str(library)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options)
    (source,), (sink,) = session.get_inputs(), session.get_outputs()
    fixed = source.shape[0] == 1

    @batch
    def infer(**inputs):
        array = inputs[source.name]
        if not fixed:
            return session.run(None, {source.name: array})
        rows = [session.run(None, {source.name: row[None]})[0] for row in array]
        return [np.concatenate(rows)]

    config = TritonConfig(http_port=int(port), allow_grpc=False, allow_metrics=False, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=name,
            infer_func=infer,
            inputs=[Tensor(name=source.name, dtype=np.float32, shape=tuple(source.shape[1:]))],
            outputs=[Tensor(name=sink.name, dtype=np.float32, shape=tuple(sink.shape[1:]))],
            config=ModelConfig(max_batch_size=32),
        )
        triton.serve()
