"""LitServe: python litserve_model.py MODEL NAME PORT."""

import sys

import litserve as ls
import numpy as np
import onnxruntime as ort


class Onnx(ls.LitAPI):
    """One ONNX model."""

    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(sys.argv[1], options)

    def decode_request(self, request):
        (tensor,) = request["inputs"]
        return tensor["name"], np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, x):
        name, array = x
        return self._session.run(None, {name: array})[0]

    def encode_response(self, output):
        shape = list(output.shape)
        data = output.ravel().tolist()
        return {"outputs": [{"name": "y", "datatype": "FP32", "shape": shape, "data": data}]}


if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    api = Onnx(api_path=f"/v2/models/{name}/infer")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(port), num_api_servers=1, log_level="error", generate_client_file=False)
