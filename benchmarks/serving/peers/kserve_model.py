"""KServe's Python SDK: python kserve_model.py MODEL NAME PORT."""

import sys

import numpy as np
import onnxruntime as ort
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Onnx(Model):
    """One ONNX model."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(path, options)
        self.ready = True

    async def predict(self, payload: InferRequest, headers=None, response_headers=None):
        (tensor,) = payload.inputs
        array = tensor.as_numpy().astype(np.float32, copy=False)
        (answer,) = self._session.run(None, {tensor.name: array})
        output = InferOutput(name="y", shape=list(answer.shape), datatype="FP32")
        output.set_data_from_numpy(answer, binary_data=tensor._raw_data is not None)
        return InferResponse(
            response_id=payload.id or "1", model_name=self.name, infer_outputs=[output]
        )


if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    server = ModelServer(
        http_port=int(port),
        enable_grpc=False,
        workers=1,
        enable_docs_url=False,
        access_log_format="",
    )
    server.start([Onnx(name, path)])
