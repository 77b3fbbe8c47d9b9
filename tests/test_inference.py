"""``POST /inference``: every status, header and codec, as a client sees them."""

import http.client
import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import msgpack
import pytest
from flask import Flask, Response, abort, redirect, request
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from pydantic import BaseModel
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests, Unauthorized
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from ventu_lite import Service
from ventu_lite.batching.local_jobs import Inferred
from ventu_lite.inference import server_timing
from ventu_lite.runtime import Runtime

PATIENCE = 10.0
JSON, MSGPACK = "application/json", "application/msgpack"

_numbers = count()


class Texts(BaseModel):
    texts: list[str]


def make_service(fn: Any = len, **options: Any) -> Service:
    """Return a service of its own name; by default it answers a string with its length."""
    options = {"request": str, "response": Any} | options
    service = Service(f"inference {next(_numbers)}", **options)
    service.add_stage("infer", fn)
    return service


def make_client(fn: Any = len, **options: Any) -> FlaskClient:
    return make_service(fn, **options).app.test_client()


def make_late_client(fn: Any = len) -> FlaskClient:
    """Return a client of a service that is ready, and later with each answer than it may be."""
    now = 1000.0

    def infer(text: str) -> Any:
        nonlocal now
        now += 0.03
        return fn(text)

    service = make_service(infer, timeout=0.02)
    service._runtime = Runtime(service, clock=lambda: now)
    service.runtime.startup.run()
    return service.app.test_client()


def raising(exc: BaseException) -> Any:
    def infer(text: str) -> Any:
        raise exc

    return infer


def post(client: FlaskClient, data: bytes = b'"abc"', type: str = JSON, **h: str) -> TestResponse:
    headers = {name.replace("_", "-"): value for name, value in h.items()}
    return client.post("/inference", data=data, content_type=type, headers=headers)


def problem(response: TestResponse, status: int) -> dict[str, Any]:
    """Return the problem document, which must be whole and fit the response."""
    assert response.status_code == status
    if response.mimetype == MSGPACK:
        document = msgpack.unpackb(response.data)
    else:
        assert response.mimetype == "application/problem+json"
        document = json.loads(response.data)
    assert document["type"] == "about:blank"
    assert document["status"] == status
    assert document["title"]
    assert document["instance"] == f"/inference#{response.headers['X-Request-ID']}"
    return dict(document)


# ---------------------------------------------------------------------------------- 200


def test_json_is_answered_in_json() -> None:
    response = post(make_client())
    assert (response.status_code, response.mimetype, response.data) == (200, JSON, b"3")
    assert response.headers["Content-Length"] == "1"


@pytest.mark.parametrize("type", [MSGPACK, "application/x-msgpack", "application/vnd.msgpack"])
def test_msgpack_is_answered_in_its_own_type(type: str) -> None:
    response = post(make_client(), msgpack.packb("abcd"), type)
    assert (response.status_code, response.mimetype, response.data) == (200, type, b"\x04")


def test_parameters_of_a_type_are_not_repeated() -> None:
    response = post(make_client(), msgpack.packb("abcd"), "application/x-msgpack; a=b")
    assert response.headers["Content-Type"] == "application/x-msgpack"


@pytest.mark.parametrize("type", ["", "*/*", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize(
    ("data", "mimetype"), [(b'"abc"', JSON), (msgpack.packb("abc"), MSGPACK)], ids=["json", "mp"]
)
def test_an_unspecific_type_is_told_by_the_body(type: str, data: bytes, mimetype: str) -> None:
    response = post(make_client(), data, type)
    assert (response.status_code, response.mimetype) == (200, mimetype)


@pytest.mark.parametrize(
    ("accept", "mimetype"),
    [
        ("", JSON),
        ("*/*", JSON),
        (MSGPACK, MSGPACK),
        (f"{JSON};q=0.5, {MSGPACK}", MSGPACK),
        (f"{JSON}, {MSGPACK};q=0.5", JSON),
        ("application/problem+json", JSON),
    ],
)
def test_accept_chooses_the_codec_of_the_answer(accept: str, mimetype: str) -> None:
    response = post(make_client(), Accept=accept)
    assert (response.status_code, response.mimetype) == (200, mimetype)


def test_server_timing_tells_where_the_time_went() -> None:
    header = post(make_client()).headers["Server-Timing"]
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf'queue;dur={number}, infer;dur={number}, total;dur={number}, batch;desc="1"', header
    )
    assert server_timing(Inferred(b"", 0.0012, 0.0054, 16), 0.0071) == (
        'queue;dur=1.200, infer;dur=5.400, total;dur=7.100, batch;desc="16"'
    )


def test_hooks_of_the_user_may_read_the_body_before_and_after() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_service().blueprint)
    seen: list[bytes] = []
    app.before_request(lambda: seen.append(request.get_data()))

    @app.after_request
    def remember(response: Response) -> Response:
        seen.append(request.get_data() + response.get_data())
        return response

    assert post(app.test_client()).data == b"3"
    assert seen == [b'"abc"', b'"abc"3']


# --------------------------------------------------------------------------------- 4xx


@pytest.mark.parametrize(
    ("data", "type"),
    [
        (b"", JSON),
        (b"", ""),
        (b'"abc', JSON),
        (b"\xff", JSON),
        (b'"\xff"', JSON),
        (msgpack.packb("abc"), JSON),
        (b'"abc"', MSGPACK),
        (b"\xa5abc", MSGPACK),
        (b"\xc1", MSGPACK),
        (b"\xa1\xff", MSGPACK),
    ],
)
def test_a_malformed_body_is_400(data: bytes, type: str) -> None:
    detail = problem(post(make_client(), data, type), 400)["detail"]
    assert detail.startswith("the body ")
    assert ("msgpack" if type == MSGPACK else "JSON") in detail


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1_0", "", "1,5"])
def test_a_timeout_that_is_no_positive_number_is_400(value: str) -> None:
    assert "positive number" in problem(post(make_client(), X_Request_Timeout=value), 400)["detail"]


def test_a_body_that_does_not_arrive_is_400() -> None:
    app = make_service().app
    with serving(app) as address:
        connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
        connection.putrequest("POST", "/inference")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b'"abc')
        connection.sock.shutdown(1)
        assert connection.getresponse().status == 400
        connection.close()


def test_a_body_that_the_server_cannot_read_is_400() -> None:
    """Each WSGI server has exceptions of its own for malformed chunks."""

    class Malformed(io.BytesIO):
        def readinto(self, buffer: Any, /) -> int:
            raise LookupError("invalid chunk size")

    stream = Malformed(b'"abcdef"')
    response = make_client().post("/inference", input_stream=stream, content_length=8)
    assert "malformed" in problem(response, 400)["detail"]


def test_404_and_405_of_its_own_app_are_problems() -> None:
    client = make_client()
    response = client.get("/inference")
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    problem(response, 405)
    missing = client.get("/nowhere")
    assert (missing.status_code, missing.mimetype) == (404, "application/problem+json")
    assert missing.get_json()["instance"] == f"/nowhere#{missing.headers['X-Request-ID']}"


def test_the_path_of_an_instance_is_quoted() -> None:
    response = make_client().get("/n%C3%A4h%20e%0d%0a")
    assert response.get_json()["instance"].startswith("/n%C3%A4h%20e%0D%0A#")


def test_an_accept_that_excludes_all_is_406() -> None:
    document = problem(post(make_client(), Accept="text/html"), 406)
    assert JSON in document["detail"]
    problem(post(make_client(codec="json"), Accept=MSGPACK), 406)


def test_a_body_of_the_limit_is_read_and_one_more_byte_is_413() -> None:
    client = make_client(max_body=5)
    assert post(client).status_code == 200
    for data in (b'"abcd"', b'"abcdefg"'):
        assert problem(post(client, data), 413)["detail"] == "body of more than 5 bytes (max_body)"


def test_a_body_that_a_hook_has_read_is_limited_too() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_service(max_body=5).blueprint)
    app.before_request(lambda: request.get_data() and None)
    assert post(app.test_client()).status_code == 200
    problem(post(app.test_client(), b'"abcd"'), 413)


@pytest.mark.parametrize(
    "type", ["text/plain", "application/xml", "multipart/form-data", "application/json; charset=x"]
)
def test_a_type_that_is_not_read_is_415(type: str) -> None:
    detail = problem(post(make_client(), type=type), 415)["detail"]
    assert repr(type.rpartition("charset=")[2]) in detail


def test_a_codec_that_is_switched_off_is_415() -> None:
    problem(post(make_client(codec="json"), b"\xa3abc", MSGPACK), 415)
    assert post(make_client(codec="msgpack"), b"\xa3abc", "").data == b"\x03"


def test_a_content_encoding_is_415() -> None:
    assert "'gzip'" in problem(post(make_client(), Content_Encoding="gzip"), 415)["detail"]
    assert post(make_client(), Content_Encoding="Identity").status_code == 200


def test_a_value_that_does_not_fit_is_422_with_its_errors() -> None:
    document = problem(post(make_client(request=Texts), b'{"texts": ["secret", 1]}'), 422)
    assert document["error_count"] == 1
    (error,) = document["errors"]
    assert error["loc"] == ["texts", 1]
    assert set(error) == {"type", "loc", "msg"}
    assert "secret" not in json.dumps(document)


def test_no_more_than_twenty_errors_are_told() -> None:
    data = json.dumps({"texts": [1] * 300}).encode()
    document = problem(post(make_client(request=Texts), data), 422)
    assert (len(document["errors"]), document["error_count"]) == (20, 300)


# ----------------------------------------------------------------------------- api key


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("k3y", "Bearer k3y"),
        ("k3y", "bearer  k3y "),
        ("schlüssel", "Bearer " + "schlüssel".encode().decode("latin-1")),
        ("voilà", "Bearer " + "voilà".encode().decode("latin-1")),
    ],
)
def test_the_right_key_opens(key: str, sent: str) -> None:
    # The last one ends in a byte that Python takes for a space.
    client = make_client(api_key=key)
    environ = {"HTTP_AUTHORIZATION": sent}
    response = client.post(
        "/inference", data=b'"abc"', content_type=JSON, environ_overrides=environ
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "sent", ["", "Bearer", "Bearer ", "k3y", "Basic k3y", "Bearer K3Y", "Bearer k3y x", "Bearer ÿ"]
)
def test_another_key_is_401(sent: str) -> None:
    client = make_client(api_key="k3y")
    response = post(client, Authorization=sent)
    document = problem(response, 401)
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "k3y" not in document["detail"]


def test_a_key_is_asked_for_before_anything_else_is_told() -> None:
    client = make_client(api_key="k3y", max_body=1)
    document = problem(post(client, b"x" * 100, "text/plain", X_Request_Timeout="x"), 401)
    assert document["detail"].startswith("send the key")


def test_only_inference_needs_the_key() -> None:
    client = make_client(api_key="k3y")
    for path in ("/livez", "/metrics", "/", "/apidoc/openapi.json"):
        assert client.get(path).status_code == 200


# ------------------------------------------------------------------------ 500 and aborts


def test_what_is_unexpected_is_500_and_only_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    response = post(make_client(raising(KeyError("secret"))), X_Request_ID="me-1")
    document = problem(response, 500)
    assert "secret" not in json.dumps(document)
    assert document["instance"] == "/inference#me-1"
    (record,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    said = rf"request me-1 failed: KeyError: 'secret' \({__file__}:\d+\)"
    assert re.fullmatch(said, record.getMessage())
    assert record.__dict__["request_id"] == "me-1"
    assert record.exc_info
    assert "KeyError: 'secret'" in caplog.text
    assert "in infer" in caplog.text


def test_requests_that_fall_together_share_one_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Who logs it lets go of its frames: nobody else may need them any more."""
    options: dict[str, Any] = {"max_wait_policy": "fixed", "max_wait": PATIENCE}
    service = Service(f"inference {next(_numbers)}", max_batch_size=3, **options)

    @service.infer(batch=True, isolate=False)
    def infer(batch: list[str]) -> list[str]:
        raise OSError("the device is gone")

    service.runtime.startup.run()
    ids = ["a", "b", "c"]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, service.app.test_client(), X_Request_ID=id) for id in ids]
        assert [each.result(PATIENCE).status_code for each in asked] == [500] * 3
    records = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert sorted(one.__dict__["request_id"] for one in records) == ids
    said = rf"request . failed: .*infer \({__file__}:\d+\) raised OSError for one or more of 3 item"
    assert all(re.match(said, one.getMessage()) for one in records)
    (shown,) = [one for one in records if one.exc_info]
    assert re.search(rf"item\(s\) \({__file__}:\d+\)$", shown.getMessage())
    assert "OSError: the device is gone" in caplog.text and "in infer" in caplog.text


def test_an_answer_that_does_not_fit_is_500() -> None:
    assert "secret" not in str(problem(post(make_client(lambda t: "secret", response=int)), 500))


@pytest.mark.parametrize("exc", [SystemExit(0), GeneratorExit()])
def test_nothing_that_a_stage_raises_ends_the_process(exc: BaseException) -> None:
    client = make_client(raising(exc))
    document = problem(post(client), 500)
    assert document["detail"].startswith("the service failed on this request")
    assert client.get("/livez").status_code == 200


def test_an_abort_has_its_status_and_words(caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(lambda text: abort(404, "no such model"))
    assert problem(post(client), 404)["detail"] == "no such model"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_an_abort_in_any_stage_counts() -> None:
    service = make_service()
    service.preprocess(lambda text: text if text != "pre" else abort(403, "pre"))
    service.postprocess(lambda length: length if length != 4 else abort(418, "post"))
    client = service.app.test_client()
    assert problem(post(client, b'"pre"'), 403)["detail"] == "pre"
    assert problem(post(client, b'"post"'), 418)["detail"] == "post"
    assert post(client).data == b"3"


@pytest.mark.parametrize(
    ("exc", "status"),
    [(TooManyRequests(retry_after=7), 429), (ServiceUnavailable("x", None, 7), 503)],
)
def test_an_abort_keeps_its_headers(exc: HTTPException, status: int) -> None:
    response = post(make_client(raising(exc)))
    problem(response, status)
    assert response.headers["Retry-After"] == "7"
    assert len(response.headers.getlist("Content-Type")) == 1


def test_an_unauthorized_stage_names_the_scheme() -> None:
    assert post(make_client(raising(Unauthorized()))).headers["WWW-Authenticate"] == "Bearer"
    two = [WWWAuthenticate("basic", {"realm": "a"}), WWWAuthenticate("digest", {"realm": "b"})]
    response = post(make_client(raising(Unauthorized(www_authenticate=two))))
    assert len(response.headers.getlist("WWW-Authenticate")) == 2


def test_an_abort_with_an_error_of_its_own_is_sent_as_it_is() -> None:
    own = Response("I am short and stout", 418, {"X-Own": "1"})
    response = post(make_client(lambda text: abort(own)), X_Request_ID="me-2")
    assert (response.status_code, response.text) == (418, "I am short and stout")
    assert response.headers["X-Own"] == "1"
    assert response.headers["X-Request-ID"] == "me-2"


@pytest.mark.parametrize(
    "fn",
    [
        lambda text: abort(redirect("/elsewhere")),
        lambda text: abort(Response("fine", 200)),
        lambda text: abort(302),
    ],
    ids=["redirect", "response", "302"],
)
def test_an_abort_that_is_no_error_is_the_fault_of_the_service(
    fn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    problem(post(make_client(fn)), 500)
    assert caplog.records


def test_any_description_can_be_told() -> None:
    class Odd(HTTPException):
        code = 409

    assert problem(post(make_client(raising(Odd()))), 409)["detail"] == ""
    odd = Odd(["a", {"b"}])  # type: ignore[arg-type]  # nothing stops a user
    assert "b" in problem(post(make_client(raising(odd))), 409)["detail"]
    assert problem(post(make_client(raising(Odd("\ud800")))), 409)["detail"] == "?"


# ------------------------------------------------------------------------------ 503, 504


def test_who_comes_during_set_up_waits_and_is_told_to_come_back() -> None:
    go = threading.Event()
    service = make_service()
    service.setup(lambda: go.wait(PATIENCE))
    client = service.app.test_client()
    response = post(client, X_Request_Timeout="0.01")
    assert "still running" in problem(response, 503)["detail"]
    assert response.headers["Retry-After"] == "1"
    go.set()
    assert post(client).data == b"3"


def test_who_comes_after_a_failed_set_up_is_told_when_to_come_back() -> None:
    service = make_service()
    service.setup(lambda: [][0])
    response = post(service.app.test_client())
    assert "failed" in problem(response, 503)["detail"]
    assert 5 <= int(response.headers["Retry-After"]) <= 10


def test_a_deadline_may_be_over_before_anything_is_done() -> None:
    client = make_client()
    assert post(client).status_code == 200
    detail = problem(post(client, X_Request_Timeout="1e-9"), 504)["detail"]
    assert detail.endswith("; it still waited for its turn")


def test_a_deadline_passes_during_the_call() -> None:
    detail = problem(post(make_late_client()), 504)["detail"]
    assert detail.endswith("; the model was still at work on it")


def test_the_header_only_shortens_the_deadline() -> None:
    problem(post(make_late_client(), X_Request_Timeout="100"), 504)
    assert post(make_client(), X_Request_Timeout="1e308").status_code == 200


def test_what_fails_after_its_deadline_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    response = post(make_late_client(raising(KeyError("abc"))))
    problem(response, 504)
    assert f"request {response.headers['X-Request-ID']} failed" in caplog.text
    assert "KeyError" in caplog.text


# ----------------------------------------------------------------------------- problems


@pytest.mark.parametrize(
    ("type", "accept", "mimetype"),
    [
        (JSON, "", "application/problem+json"),
        (JSON, "*/*", "application/problem+json"),
        (MSGPACK, "", MSGPACK),
        ("application/x-msgpack", "*/*", MSGPACK),
        (MSGPACK, JSON, "application/problem+json"),
        (MSGPACK, "application/problem+json", "application/problem+json"),
        (JSON, f"{MSGPACK}, {JSON};q=0.5", MSGPACK),
        (MSGPACK, "text/html", "application/problem+json"),
    ],
)
@pytest.mark.parametrize("timeout", ["0", "1"], ids=["refused", "answered"])
def test_a_problem_is_told_in_the_codec_of_the_client(
    type: str, accept: str, mimetype: str, timeout: str
) -> None:
    headers = {"Accept": accept, "X-Request-Timeout": timeout}
    response = make_client().post("/inference", data=b"1", content_type=type, headers=headers)
    assert (response.status_code >= 400, response.mimetype) == (True, mimetype)
    problem(response, response.status_code)


def test_a_problem_is_told_in_the_codec_of_the_body() -> None:
    assert post(make_client(), b"[1]", "").mimetype == "application/problem+json"
    assert post(make_client(), msgpack.packb([1]), "").mimetype == MSGPACK


def test_instance_holds_the_script_root() -> None:
    response = make_client().post("/inference", base_url="http://x/a", content_type="text/plain")
    assert response.get_json()["instance"].startswith("/a/inference#")


# --------------------------------------------------------------------------- request ids


@pytest.mark.parametrize("given", ["a", "1-2_3.4:5/6+7=8@9~", "x" * 128])
def test_a_sane_request_id_comes_back(given: str) -> None:
    assert post(make_client(), X_Request_ID=given).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ä", "<b>", "a%0d", 'a"', "a#b"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    made = post(make_client(), X_Request_ID=given).headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", made)


@pytest.mark.parametrize("given", ["a\r\nX-Evil: 1", "a\n", "\na"])
def test_no_header_can_be_smuggled_in(given: str) -> None:
    response = make_client().post(
        "/inference", data=b"1", environ_overrides={"HTTP_X_REQUEST_ID": given}
    )
    assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])
    assert "X-Evil" not in response.headers


def test_two_requests_have_two_ids() -> None:
    client = make_client()
    assert post(client).headers["X-Request-ID"] != post(client).headers["X-Request-ID"]


# ------------------------------------------------------------------------------- metrics


def test_every_answer_is_counted_by_its_status() -> None:
    service = make_service(api_key="k")
    client = service.app.test_client()
    post(client, Authorization="Bearer k")
    post(client, Authorization="Bearer k")
    post(client, b"1", Authorization="Bearer k")
    post(client)
    labels = {"service": service.name}
    assert {
        status: REGISTRY.get_sample_value(
            "ventu_request_seconds_count", labels | {"status": status}
        )
        for status in ("200", "401", "422", "500")
    } == {"200": 2, "401": 1, "422": 1, "500": None}


def test_what_cannot_be_read_is_counted_as_invalid_whoever_notices() -> None:
    service = make_service(lambda text: abort(len(text) + 400), max_body=30, api_key="k")
    client = service.app.test_client()
    key = {"Authorization": "Bearer k"}
    counts = dict[str, float | None]()
    for headers, data, type in (
        ({}, b'"abc"', "text/plain"),  # 415
        ({"X-Request-Timeout": "0"}, b'"abc"', JSON),  # 400
        ({"Accept": "text/html"}, b'"abc"', JSON),  # 406
        ({}, b'"%b"' % (b"a" * 30), JSON),  # 413
        ({}, b"1", JSON),  # 422
        ({}, b'"%b"' % (b"a" * 22), JSON),  # 422, of the stage
        ({}, b'"%b"' % (b"a" * 18), JSON),  # 418
    ):
        client.post("/inference", data=data, content_type=type, headers=key | headers)
    client.post("/inference", data=b"1")  # 401
    client.get("/inference", headers=key)
    for reason in ("invalid", "failed", "full"):
        labels = {"service": service.name, "reason": reason}
        counts[reason] = REGISTRY.get_sample_value("ventu_rejected_total", labels)
    assert counts == {"invalid": 6, "failed": 1, "full": None}


# ---------------------------------------------------------------------------- real server


@contextmanager
def serving(app: Flask) -> Iterator[tuple[str, int]]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield "127.0.0.1", server.server_port
    finally:
        server.shutdown()
        thread.join(PATIENCE)
        server.server_close()


def ask(address: tuple[str, int], data: Any, **options: Any) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    try:
        connection.request("POST", "/inference", data, {"Content-Type": JSON}, **options)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_many_clients_at_once_set_the_service_up_once() -> None:
    loaded = []
    together = threading.Barrier(16)
    service = make_service(lambda text: together.wait(PATIENCE) * 0 + len(text))
    service.setup(lambda: loaded.append(1))
    with serving(service.app) as address, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(address, b'"abc"'), range(16)))
    assert answers == [(200, b"3")] * 16
    assert loaded == [1]


def test_a_chunked_body_is_read_up_to_the_limit() -> None:
    with serving(make_service(max_body=5).app) as address:
        assert ask(address, iter([b'"a', b'bc"']), encode_chunked=True) == (200, b"3")
        status, body = ask(address, iter([b"1234", b"56"]), encode_chunked=True)
    assert (status, json.loads(body)["detail"]) == (413, "body of more than 5 bytes (max_body)")
