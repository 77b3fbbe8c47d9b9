"""The view of ``POST /inference``, and problem documents as Flask responses."""

import hmac
import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from flask import Response, request
from werkzeug.exceptions import HTTPException, Unauthorized

from .codecs import CODEC_OF, MEDIA_TYPE, PROBLEM_TYPE, request_codec, response_type, sniff
from .config import Codec
from .errors import PayloadError, Unavailable, UnsupportedMediaType
from .outcomes import Rejected
from .problems import encode_problem, problem
from .runtime import Reply, Runtime

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}")


class Inference:
    """The view of ``POST /inference`` of one service."""

    def __init__(self, service: "Service") -> None:
        config = service.config
        self._runtime: Runtime = service.runtime
        self._runtime.answers_http = True
        self._setting = config.codec
        self._timeout = config.timeout
        self._max_body = int(config.max_body)
        self._api_key = config.api_key and config.api_key.get_secret_value().encode()

    def __call__(self) -> Response:
        """Answer the current request."""
        runtime = self._runtime
        arrived_at = runtime.clock()
        environ = request.environ
        request_id = request_id_of(environ)
        try:
            self._authorize(environ)
            reply, media_type = self._reply(environ, arrived_at)
        except (PayloadError, Unavailable, HTTPException) as exc:
            response = problem_response(exc, request_id)
        else:
            response = self._response(reply, media_type, request_id)
        seconds = runtime.clock() - arrived_at
        response.headers["X-Request-ID"] = request_id
        if response.status_code == 200:
            response.headers["Server-Timing"] = server_timing(reply, seconds)
        runtime.metrics.request(response.status_code, seconds)
        return response

    def _authorize(self, environ: Mapping[str, Any]) -> None:
        if self._api_key is None:
            return
        scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        given = key.strip().encode("latin-1", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._api_key):
            raise Unauthorized("send the key of this service: Authorization: Bearer KEY")

    def _reply(self, environ: Mapping[str, Any], arrived_at: float) -> tuple[Reply, str]:
        """Read the request and have it answered.

        Returns:
            What became of it, and the media type of a good answer.

        Raises:
            PayloadError, Unavailable, HTTPException: It cannot be answered.
        """
        content_type = environ.get("CONTENT_TYPE", "")
        codec = request_codec(content_type, self._setting)
        _refuse_encoding(environ.get("HTTP_CONTENT_ENCODING"))
        deadline = arrived_at + self._seconds(environ.get("HTTP_X_REQUEST_TIMEOUT"))
        request.max_content_length = self._max_body
        payload = request.get_data(cache=False)
        if codec is None:
            codec = sniff(payload)
        own_type = content_type if content_type in CODEC_OF else MEDIA_TYPE[codec]
        media_type = response_type(environ.get("HTTP_ACCEPT", ""), own_type, self._setting)
        answer_codec: Codec = "json" if media_type == MEDIA_TYPE["json"] else "msgpack"
        return self._runtime.answer(payload, codec, answer_codec, deadline), media_type

    def _seconds(self, header: str | None) -> float:
        """Return the seconds that this request may take.

        Raises:
            PayloadError: The header is no positive number.
        """
        if header is None:
            return self._timeout
        try:
            seconds = float(header)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise PayloadError("X-Request-Timeout must be a positive number of seconds")
        return min(seconds, self._timeout)

    def _response(self, reply: Reply, media_type: str, request_id: str) -> Response:
        outcome = reply.outcome
        if not isinstance(outcome, Rejected):
            return Response(outcome, 200, content_type=media_type)
        if outcome.is_fault:
            log.error(
                "request %s failed",
                request_id,
                exc_info=outcome.exc,
                extra={"request_id": request_id},
            )
        return rejected_response(outcome, request_id)


def request_id_of(environ: Mapping[str, Any]) -> str:
    """Return the client's request id if it is sane, else a new one."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _SANE_ID.fullmatch(given) else os.urandom(16).hex()


def server_timing(reply: Reply, seconds: float) -> str:
    """Return the ``Server-Timing`` header; durations in milliseconds."""
    return (
        f"queue;dur={reply.queue * 1e3:.3f}, infer;dur={reply.infer * 1e3:.3f},"
        f' total;dur={seconds * 1e3:.3f}, batch;desc="{reply.batch_size}"'
    )


def problem_response(exc: Exception, request_id: str) -> Response:
    """Return the problem document for an exception that carries a status."""
    if isinstance(exc, Unavailable):
        headers = {} if exc.retry_after is None else {"Retry-After": _whole(exc.retry_after)}
        return _problem(exc.status, str(exc), request_id, headers)
    if isinstance(exc, HTTPException) and exc.response is None and (exc.code or 0) < 400:
        return exc.get_response()  # type: ignore[return-value]  # a redirect is no problem
    return rejected_response(Rejected.of(exc), request_id)


def rejected_response(rejected: Rejected, request_id: str) -> Response:
    """Return the problem document for a rejected item, with the headers its exception wants."""
    exc, headers = rejected.exc, {}
    if isinstance(exc, HTTPException) and exc.code == rejected.status:
        headers = {k: v for k, v in exc.get_headers() if k.lower() != "content-type"}
        if isinstance(exc, Unauthorized) and "WWW-Authenticate" not in headers:
            headers["WWW-Authenticate"] = "Bearer"
    return _problem(rejected.status, rejected.detail, request_id, headers, rejected.extra or {})


def _problem(
    status: int,
    detail: str,
    request_id: str,
    headers: Mapping[str, str],
    extra: Mapping[str, Any] = {},  # noqa: B006  # never changed
) -> Response:
    codec = _problem_codec()
    instance = f"{request.script_root}{request.path}#{request_id}"
    body = encode_problem(problem(status, detail, instance, **extra), codec)
    response = Response(body, status, content_type=PROBLEM_TYPE[codec])
    response.headers.update(headers)
    return response


def _problem_codec() -> Codec:
    """Return the codec of an error body: a msgpack client gets msgpack, everybody else JSON."""
    accepted = CODEC_OF.get(request.headers.get("Accept", ""))
    sent = CODEC_OF.get(request.mimetype)
    return "msgpack" if "msgpack" in (accepted, sent) and accepted != "json" else "json"


def _refuse_encoding(encoding: str | None) -> None:
    if encoding and encoding.lower() != "identity":
        raise UnsupportedMediaType(
            f"content encoding {encoding[:100]!r} is not read here; send the body as it is"
        )


def _whole(seconds: float) -> str:
    return str(max(1, -int(-seconds // 1)))
