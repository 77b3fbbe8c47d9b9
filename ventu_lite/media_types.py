"""Which codec a request announces, and in which media type its answer goes.

werkzeug is imported by those headers that need it: the batching service, alone, mostly meets plain
ones, and is a tenth smaller without.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from .config import Codec, CodecSetting
from .errors import NotAcceptable, UnsupportedMediaType

CODEC_OF: dict[str, Codec] = {
    "application/json": "json",
    "application/msgpack": "msgpack",
    "application/x-msgpack": "msgpack",
    "application/vnd.msgpack": "msgpack",  # the registered name
}
MEDIA_TYPE: dict[Codec, str] = {"json": "application/json", "msgpack": "application/msgpack"}
PROBLEM_TYPE: dict[Codec, str] = {
    "json": "application/problem+json",
    "msgpack": "application/msgpack",
}

# Types that say nothing about the body: curl -d labels all that it sends as a form.
_UNSPECIFIC = frozenset(
    {"", "*/*", "application/octet-stream", "application/x-www-form-urlencoded"}
)
# A browser sends 150. To weigh one range takes 20 µs, and the event loop stands still meanwhile.
_LONGEST_ACCEPT: Final = 1000


def media_types_of(setting: CodecSetting) -> list[str]:
    """Return the media types that are read and written under a ``codec`` setting."""
    return list(MEDIA_TYPE.values()) if setting == "auto" else [MEDIA_TYPE[setting]]


@lru_cache(maxsize=128)
def request_codec(content_type: str, setting: CodecSetting) -> Codec | None:
    """Return the codec that a ``Content-Type`` announces, ``None`` if the body has to tell.

    Raises:
        UnsupportedMediaType: It announces something that is not read here.
    """
    media_type, options = content_type.strip(), dict[str, str]()
    if ";" in media_type:
        from werkzeug.http import parse_options_header

        media_type, options = parse_options_header(content_type)
    media_type = media_type.lower()
    if media_type in _UNSPECIFIC:
        return None if setting == "auto" else setting
    codec = CODEC_OF.get(media_type)
    if codec is None or setting not in ("auto", codec):
        raise UnsupportedMediaType(
            f"content type {media_type[:100]!r} is not read here; send {_either(setting)}"
        )
    charset = options.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"charset {charset[:100]!r} is not read here; send utf-8")
    return codec


@lru_cache(maxsize=128)
def own_type(content_type: str, codec: Codec) -> str:
    """Return the media type of a request as its answer may have it.

    Args:
        content_type: The header, which says nothing or announces ``codec``; "" if there is none.
        codec: Of the body.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type if media_type in CODEC_OF else MEDIA_TYPE[codec]


@lru_cache(maxsize=128)
def response_type(accept: str, own: str, setting: CodecSetting) -> str:
    """Return the media type of the answer: what ``Accept`` prefers, else the request's own.

    Args:
        accept: The header, "" when there is none.
        own: The media type of the request, which wins a tie.
        setting: The ``codec`` setting.

    Raises:
        NotAcceptable: ``Accept`` excludes all that can be written here.
    """
    offers = [name for name, codec in CODEC_OF.items() if setting in ("auto", codec)]
    offers.sort(key=lambda name: name != own)
    if accept in ("", "*/*"):
        return offers[0]
    if accept in offers:
        return accept
    if len(accept) > _LONGEST_ACCEPT:
        raise NotAcceptable(f"Accept of more than {_LONGEST_ACCEPT} characters is not read here")
    quality = _qualities(accept)
    best = max(offers, key=quality)
    if not quality(best):
        raise NotAcceptable(f"nothing that you accept is written here; accept {_either(setting)}")
    return best


def _qualities(accept: str) -> Callable[[str], float]:
    """Return what tells how much a client likes a media type, 0 if not at all."""
    from werkzeug.datastructures import MIMEAccept
    from werkzeug.http import parse_accept_header

    # Parameters do not matter: clients add a charset that JSON does not have.
    ranges = parse_accept_header(accept, MIMEAccept)
    wanted = MIMEAccept([(name.partition(";")[0].strip(), quality) for name, quality in ranges])

    def quality(offer: str) -> float:
        if CODEC_OF[offer] == "json" and wanted.find(offer) < 0:
            # A client that asks for problem documents alone reads JSON.
            return wanted.quality(PROBLEM_TYPE["json"])
        return wanted.quality(offer)

    return quality


def _either(setting: CodecSetting) -> str:
    return " or ".join(media_types_of(setting))
