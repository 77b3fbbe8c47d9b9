"""The view of ``POST /inference``, and problem documents as Flask responses."""

import logging
import os
import random
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from flask import Request, Response, request
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    RequestEntityTooLarge,
    Unauthorized,
)

from .batching.local_jobs import Inferred
from .codecs import sniff
from .config import Codec
from .errors import BatchFailed, PayloadError, Unavailable
from .headers import SANE_ID, refuse_encoding, seconds_in, whole_seconds, why_locked_out
from .media_types import CODEC_OF, PROBLEM_TYPE, own_type, request_codec, response_type
from .outcomes import Rejected
from .problems import INVALID, body_too_large, encode_problem, problem, problem_codec
from .runtime import Runtime
from .tracebacks import in_one_line, traceback_for

if TYPE_CHECKING:
    from .service import Service

log = logging.getLogger(__name__)

_NOT_WHOLE: Final = "the body is malformed or did not come whole"
_SANE_ID: Final = re.compile(SANE_ID)

# No secrets, only unlike any other. Asking the system for each would let another thread run first.
_ids = random.Random()
os.register_at_fork(after_in_child=_ids.seed)


class Inference:
    """The view of ``POST /inference`` of one service."""

    def __init__(self, service: "Service") -> None:
        config = service.config
        self._runtime: Runtime = service.runtime
        self._runtime.count_as_http_worker()
        self._setting = config.codec
        self._timeout = config.timeout
        self._max_body = int(config.max_body)
        key = config.api_key
        self._api_key = key.get_secret_value().encode() if key else None

    def __call__(self) -> Response:
        """Answer the current request."""
        runtime = self._runtime
        arrived_at = runtime.clock()
        # The proxy costs more for each attribute than all that is done here with its value.
        current: Request = request._get_current_object()  # type: ignore[attr-defined]  # no stub
        request_id = request_id_of(current.environ)
        try:
            self._authorize(current.environ)
            reply, media_type = self._reply(current, arrived_at)
        except (PayloadError, Unavailable, HTTPException) as exc:
            response = problem_response(exc, request_id)
            if response.status_code in INVALID:
                runtime.metrics.rejected("invalid")
        else:
            if not isinstance(reply.result, Rejected):
                return self._good(reply.result, reply, media_type, request_id, arrived_at)
            response = _bad(reply.result, media_type, request_id)
        response.headers["X-Request-ID"] = request_id
        runtime.metrics.request(response.status_code, runtime.clock() - arrived_at)
        return response

    def _good(
        self, body: bytes, reply: Inferred, media_type: str, request_id: str, arrived_at: float
    ) -> Response:
        seconds = self._runtime.clock() - arrived_at
        self._runtime.metrics.request(200, seconds)
        headers = [
            ("Content-Type", media_type),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", request_id),
            ("Server-Timing", server_timing(reply, seconds)),
        ]
        return Response([body], 200, headers)

    def _authorize(self, environ: Mapping[str, Any]) -> None:
        if self._api_key is None:
            return
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1", "replace")
        if why := why_locked_out(given, self._api_key):
            raise Unauthorized(why)

    def _reply(self, current: Request, arrived_at: float) -> tuple[Inferred, str]:
        """Read the request and have it answered.

        Returns:
            What became of it, and the media type of a good answer.

        Raises:
            PayloadError, Unavailable, HTTPException: It cannot be answered.
        """
        environ = current.environ
        content_type = environ.get("CONTENT_TYPE", "")
        codec = request_codec(content_type, self._setting)
        refuse_encoding(environ.get("HTTP_CONTENT_ENCODING", ""))
        timeout = self._timeout
        if (sent := environ.get("HTTP_X_REQUEST_TIMEOUT")) is not None:
            timeout = min(timeout, seconds_in(sent))
        deadline = arrived_at + timeout
        payload = self._body(current)
        if codec is None:
            codec = sniff(payload)
        own = own_type(content_type, codec)
        media_type = response_type(environ.get("HTTP_ACCEPT", ""), own, self._setting)
        return self._runtime.answer(payload, codec, CODEC_OF[media_type], deadline), media_type

    def _body(self, current: Request) -> bytes:
        """Return the body, as a hook of the user's app may have done before and may do after.

        Raises:
            HTTPException: It is too large, or did not arrive.
        """
        # One more than is allowed: werkzeug silently cuts a chunked body at its limit.
        current.max_content_length = self._max_body + 1
        try:
            payload = current.get_data()
        except RequestEntityTooLarge:
            payload = None
        except ClientDisconnected as exc:
            raise BadRequest(_NOT_WHOLE) from exc
        except HTTPException:
            raise
        except Exception as exc:  # each WSGI server has its own errors for a malformed body
            log.warning("the body of a request could not be read: %s", exc)
            raise BadRequest(_NOT_WHOLE) from exc
        if payload is None or len(payload) > self._max_body:
            raise RequestEntityTooLarge(body_too_large(self._max_body))
        return payload


def _bad(rejected: Rejected, media_type: str, request_id: str) -> Response:
    """Return the response for a rejected item, and log whose fault it was."""
    fault = rejected.fault
    if isinstance(fault, BatchFailed) and not fault.is_news():
        # The thread of another request of the batch shows its frames, and then forgets them.
        _log_fault(request_id, str(fault), None)
    else:
        if fault:
            _log_fault(request_id, in_one_line(fault), traceback_for(fault, log))
        rejected.forget_frames()
    exc = rejected.exc
    if isinstance(exc, HTTPException) and _is_whole_error(exc):
        return exc.get_response()  # type: ignore[return-value]  # Flask answers with its base, too
    return rejected_response(rejected, request_id, CODEC_OF[media_type])


def _log_fault(request_id: str, said: str, shown: BaseException | None) -> None:
    extra = {"request_id": request_id}
    log.error("request %s failed: %s", request_id, said, exc_info=shown, extra=extra)


def _is_whole_error(exc: HTTPException) -> bool:
    """Tell whether a stage called ``abort(Response(...))`` with an error of its own making."""
    return exc.response is not None and 400 <= exc.response.status_code <= 599


def request_id_of(environ: Mapping[str, Any]) -> str:
    """Return the client's request id if it is sane, else a new one."""
    given = environ.get("HTTP_X_REQUEST_ID", "")
    return given if _SANE_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"


def server_timing(reply: Inferred, seconds: float) -> str:
    """Return the ``Server-Timing`` header; durations in milliseconds."""
    return (
        f"queue;dur={reply.queue * 1e3:.3f}, infer;dur={reply.infer * 1e3:.3f},"
        f' total;dur={seconds * 1e3:.3f}, batch;desc="{reply.batch_size}"'
    )


def problem_response(exc: Exception, request_id: str) -> Response:
    """Return the problem document for an exception that carries a status."""
    if isinstance(exc, Unavailable):
        wait = exc.retry_after
        headers = [] if wait is None else [("Retry-After", str(whole_seconds(wait)))]
        return _problem(exc.status, str(exc), request_id, _problem_codec(), headers)
    if isinstance(exc, HTTPException) and (exc.response is not None or (exc.code or 0) < 400):
        # A redirect is no problem, and who gives a response means it.
        return exc.get_response()  # type: ignore[return-value]  # Flask answers with its base, too
    return rejected_response(Rejected.of(exc), request_id, _problem_codec())


def rejected_response(rejected: Rejected, request_id: str, codec: Codec) -> Response:
    """Return the problem document for a rejected item, with the headers its exception wants."""
    exc = rejected.exc
    headers: list[tuple[str, str]] = []
    if isinstance(exc, HTTPException) and exc.code == rejected.status:
        headers = [pair for pair in exc.get_headers() if pair[0].lower() != "content-type"]
        if isinstance(exc, Unauthorized) and not exc.www_authenticate:
            headers.append(("WWW-Authenticate", "Bearer"))  # RFC 9110 wants one
    detail = rejected.detail.encode("utf-8", "replace").decode()  # it may hold half a character
    return _problem(rejected.status, detail, request_id, codec, headers, rejected.extra)


def _problem(
    status: int,
    detail: str,
    request_id: str,
    codec: Codec,
    headers: Iterable[tuple[str, str]],
    extra: Mapping[str, Any] | None = None,
) -> Response:
    instance = f"{quote(request.script_root + request.path)}#{request_id}"
    body = encode_problem(problem(status, detail, instance, extra), codec)
    response = Response(body, status, content_type=PROBLEM_TYPE[codec])
    response.headers.extend(headers)
    return response


def _problem_codec() -> Codec:
    return problem_codec(request.headers.get("Accept", ""), request.headers.get("Content-Type", ""))
