"""Put a Python model behind HTTP: decorate plain functions, get a service.

In a file ``app.py``, to be run by ``flask run`` or ``python -m ventu_lite serve``::

    from ventu_lite import Service

    service = Service("length", examples=["my cat", "no"])

    @service.infer(batch=True)
    def measure(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    app = service.app

The names are imported when they are first used, to save memory: the command ``batching`` needs none
of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .errors import (
        BatchFailed,
        BatchSizeError,
        CannotListen,
        ConfigError,
        InvalidPayload,
        InvalidResponse,
        JobExpired,
        MalformedPayload,
        NotAcceptable,
        NotReady,
        PayloadError,
        PayloadTooLarge,
        ProtocolError,
        QueueFull,
        RegistrationError,
        ServiceNotFound,
        Unavailable,
        UnsupportedMediaType,
        VentuError,
    )
    from .examples import Example
    from .health import Health
    from .outcomes import InferenceFailed
    from .service import Service

__all__ = [
    "BatchFailed",
    "BatchSizeError",
    "CannotListen",
    "Config",
    "ConfigError",
    "Example",
    "Health",
    "InferenceFailed",
    "InvalidPayload",
    "InvalidResponse",
    "JobExpired",
    "MalformedPayload",
    "NotAcceptable",
    "NotReady",
    "PayloadError",
    "PayloadTooLarge",
    "ProtocolError",
    "QueueFull",
    "RegistrationError",
    "Service",
    "ServiceNotFound",
    "Unavailable",
    "UnsupportedMediaType",
    "VentuError",
]

_HOMES = {
    "Config": "config",
    "Example": "examples",
    "Health": "health",
    "InferenceFailed": "outcomes",
    "Service": "service",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
