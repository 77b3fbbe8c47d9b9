"""Error bodies: RFC 9457 problem details, the same map in both codecs."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, Literal

import msgpack
from pydantic_core import to_jsonable_python

from .codecs import plain
from .config import Codec
from .errors import NotAcceptable
from .media_types import CODEC_OF, own_type, response_type

#: The reason phrases: RFC 9110's where Python's differ, or changed between its versions.
TITLES: Final = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    418: "I'm a Teapot",
    422: "Unprocessable Content",
}
#: What is told of a path that leads nowhere, and to who posts to the home page.
NO_SUCH_ROUTE: Final = "no such route; GET / lists those that there are"
ONLY_A_PAGE: Final = "ask with GET; the model is asked with POST /inference"

#: What is said of requests that are malformed or not read here, and counted as ``invalid``.
INVALID: Final = frozenset((400, 406, 413, 415, 422))


def reason_of(status: int) -> Literal["invalid", "failed"]:
    """Return whose fault it was, the label of a metric."""
    return "invalid" if status in INVALID else "failed"


def body_too_large(max_body: int) -> str:
    """Return what is told of a body of more bytes than the setting allows."""
    mebibytes, rest = divmod(max_body, 2**20)
    size = f"{max_body} bytes" if rest or not mebibytes else f"{mebibytes} MiB"
    return f"body of more than {size} (max_body)"


def title_of(status: int) -> str:
    """Return the reason phrase of a status, or that of its class."""
    return TITLES.get(status) or TITLES[status // 100 * 100]


def problem(
    status: int, detail: str, instance: str = "", extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a problem document.

    Args:
        status: The HTTP status, 400 to 599.
        detail: One sentence for this occurrence; never another request's data.
        instance: A URI reference that names the occurrence, as in the log.
        extra: Further members, such as ``errors`` and ``error_count``, or another ``type`` and
            ``title``.
    """
    document = {"type": "about:blank", "title": title_of(status)}
    own = {"status": status, "detail": detail, "instance": instance}
    return document | own | dict(extra) | own if extra else document | own


def problem_codec(accept: str, content_type: str) -> Codec:
    """Return the codec of an error body: that of the answer which the client hoped for.

    Args:
        accept: The header of the request, "" when there is none.
        content_type: The same.
    """
    try:
        return CODEC_OF[response_type(accept, own_type(content_type, "json"), "auto")]
    except NotAcceptable:  # a browser, perhaps; people read JSON more easily
        return "json"


def encode_problem(document: Mapping[str, Any], codec: Codec) -> bytes:
    """Return the bytes of a problem document; half a surrogate pair becomes a question mark.

    Texts of exceptions get here, and whatever a stage has added to its own: what no codec can say
    is put in words.

    Raises:
        Exception: A member holds itself, or has no words.
    """
    try:
        return _encode(document, codec)
    except (TypeError, ValueError, OverflowError):  # dates, numbers of numpy, exceptions
        simple = to_jsonable_python(dict(document), inf_nan_mode="null", fallback=_in_words)
        return _encode(simple, codec)


def _encode(document: Mapping[str, Any], codec: Codec) -> bytes:
    if codec == "json":
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "replace")
    return msgpack.packb(document, unicode_errors="replace")


def _in_words(value: Any) -> Any:
    try:
        return plain(value)
    except (TypeError, ValueError):
        return str(value)
