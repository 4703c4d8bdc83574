"""The Open Inference Protocol's own routes, and the form of every refusal."""

from __future__ import annotations

import pytest
from serving import Server, assert_problem

from ckks.bundle import Bundle
from ckks.modelfile import CompiledModel


def test_server_metadata(server: Server) -> None:
    body = server.http.get("/v2").json()
    assert body["name"] == "he-serve"
    assert "he_keys" in body["extensions"]
    assert server.http.get("/v2/health/live").json() == {"live": True}
    assert server.http.get("/v2/health/ready").json() == {"ready": True}


def test_model_metadata(server: Server, tiny: CompiledModel) -> None:
    assert {"name": "tiny", "bundle_digest": tiny.bundle.digest} in server.http.get("/v2/models").json()[
        "models"
    ]
    body = server.http.get("/v2/models/tiny").json()
    assert body["inputs"] == [{"name": "x", "datatype": "FP64", "shape": [3]}]
    assert body["outputs"][0]["labels"] == ["a", "b"]
    assert body["parameters"]["bundle_digest"] == tiny.bundle.digest
    assert body["parameters"]["security_bits"] >= 128
    assert server.http.get("/v2/models/tiny/ready").json()["ready"]


def test_bundle_and_its_etag(server: Server, tiny: CompiledModel) -> None:
    answer = server.http.get("/v2/models/tiny/client")
    assert answer.content == tiny.bundle.to_bytes()
    assert Bundle.from_bytes(answer.content).digest == tiny.bundle.digest
    assert answer.headers["etag"] == f'"{tiny.bundle.digest}"'
    again = server.http.get("/v2/models/tiny/client", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/", 404, "not-found"),
        ("GET", "/v2/nothing", 404, "not-found"),
        ("POST", "/v2", 405, "method-not-allowed"),
        ("PUT", "/v2/models/tiny/infer", 405, "method-not-allowed"),
        ("GET", "/v2/models/tiny/infer", 405, "method-not-allowed"),
        ("GET", "/v2/models/nobody", 404, "unknown-model"),
        ("GET", "/v2/models/nobody/client", 404, "unknown-model"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown-model"),
        ("GET", "/v2/models/..%2f..%2fetc/client", 404, "not-found"),
        ("GET", "/v2/keys/" + "A" * 43, 404, "unknown-key"),
        ("GET", "/v2/keys/" + "%00" * 9, 404, "unknown-key"),
        ("PATCH", "/v2/keys/" + "A" * 43, 404, "unknown-key"),
        ("DELETE", "/v2/keys/" + "A" * 43, 404, "unknown-key"),
    ],
)
def test_refusals_are_problems(server: Server, method: str, path: str, status: int, kind: str) -> None:
    assert_problem(server.http.request(method, path), status, kind)


def test_metrics(server: Server) -> None:
    server.http.get("/v2/nothing")
    text = server.http.get("/metrics").text
    assert 'he_serve_requests_total{method="GET",route="none",status="404"}' in text
    assert "he_serve_workers_ready 1.0" in text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert 1e3 < float(values['he_serve_encoded_weights_bytes{model="tiny"}']) < 1e6
    assert 1e7 < float(values["he_serve_loading_peak_bytes"]) < 1e9


def test_openapi_describes_the_routes(server: Server) -> None:
    assert "/v2/models/{name}/infer" in server.http.get("/openapi.json").json()["paths"]
