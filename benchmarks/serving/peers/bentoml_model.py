"""BentoML: a service with an ASGI application of one's own mounted, which is its fastest way."""

import json
import os

import bentoml
import numpy as np
import onnxruntime as ort
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
SESSION = ort.InferenceSession(os.environ["BENCHMARK_MODEL"], options)


async def infer(request: Request) -> Response:
    (tensor,) = json.loads(await request.body())["inputs"]
    array = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    (answer,) = SESSION.run(None, {tensor["name"]: array})
    shape, data = list(answer.shape), answer.ravel().tolist()
    output = {"name": "y", "datatype": "FP32", "shape": shape, "data": data}
    return Response(json.dumps({"outputs": [output]}), media_type="application/json")


app = Starlette(routes=[Route("/v2/models/{name}/infer", infer, methods=["POST"])])


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": False})
@bentoml.asgi_app(app, path="/")
class Onnx:
    """One ONNX model."""
