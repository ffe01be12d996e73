"""Real processes: tritonclient by HTTP and gRPC, by the proxy and not, and one budget for all."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http
from tritonclient.utils import InferenceServerException

from aigovtool.demo.stage import Stage, free_port
from aigovtool.demo.story import ASSETS


def image() -> list[triton.InferInput]:
    tensor = triton.InferInput("image", [1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 8, 8), np.float32))
    return [tensor]


def live(port: int) -> bool:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        try:
            return client.is_server_live()
        except InferenceServerException:
            return False


def test_all_doors_lead_to_one_budget(tmp_path: Path) -> None:
    with Stage(tmp_path / "stage") as stage:
        assert stage.init().code == 0
        stage.serve_custodian(
            "--upload", str(ASSETS / "digits.onnx"),
            "--interface", str(ASSETS / "interface.json"), "--num-requests", "6",
        )  # fmt: skip
        direct, proxied, plain = free_port(), free_port(), free_port()
        enclave, port = stage.serve_enclave("enclave", "--grpc-listen", f"127.0.0.1:{direct}")
        proxy = stage.start(
            "proxy",
            stage.client(
                "proxy",
                port,
                "--listen",
                f"127.0.0.1:{plain}",
                "--grpc-listen",
                f"127.0.0.1:{proxied}",
            ),
        )
        stage.wait_for(proxy, lambda: live(proxied))
        with triton.InferenceServerClient(f"127.0.0.1:{proxied}") as client:
            scores = client.infer("digits", image()).as_numpy(
                client.get_model_metadata("digits").outputs[0].name
            )
            assert scores.shape[0] == 1
        for coding in (None, "gzip", "deflate"):  # unmodified, as with any server
            with contextlib.closing(
                tritonclient.http.InferenceServerClient(f"127.0.0.1:{plain}")
            ) as http:
                tensor = tritonclient.http.InferInput("image", [1, 8, 8], "FP32")
                tensor.set_data_from_numpy(np.zeros((1, 8, 8), np.float32))
                came = http.infer(
                    "digits",
                    [tensor],
                    request_compression_algorithm=coding,
                    response_compression_algorithm=coding,
                )
                name = http.get_model_metadata("digits")["outputs"][0]["name"]
                np.testing.assert_array_equal(came.as_numpy(name), scores)
        # what the proxy does for its user: here the test trusts whatever answers
        pem = ssl.get_server_certificate(("127.0.0.1", direct)).encode()
        key = (stage.data / "consumer.key").read_text().strip()
        with triton.InferenceServerClient(
            f"127.0.0.1:{direct}",
            ssl=True,
            creds=grpc.ssl_channel_credentials(pem),
            channel_args=[("grpc.ssl_target_name_override", "AIGovTool enclave")],
        ) as client:
            with pytest.raises(InferenceServerException, match="key"):
                client.infer("digits", image())
            headers = {"authorization": f"Bearer {key}"}
            again = client.infer("digits", image(), headers=headers)
            np.testing.assert_array_equal(
                again.as_numpy(again.get_response().outputs[0].name), scores
            )
            client.infer("digits", image(), headers=headers)
            with pytest.raises(InferenceServerException) as caught:
                client.infer("digits", image(), headers=headers)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert stage.run(*stage.client("budget", port, "--json")).json()["remaining"] == 0
        assert enclave.terminate() == 0
        for process in (proxy, enclave):
            assert "Traceback" not in process.output()
