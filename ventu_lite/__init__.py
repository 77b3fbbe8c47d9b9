"""Put a Python model behind HTTP: decorate plain functions, get a service."""

from .config import Config
from .errors import (
    BatchSizeError,
    CannotListen,
    ConfigError,
    InvalidPayload,
    JobExpired,
    MalformedPayload,
    NotAcceptable,
    NotReady,
    PayloadError,
    ProtocolError,
    QueueFull,
    RegistrationError,
    ServiceNotFound,
    Unavailable,
    UnsupportedMediaType,
    VentuError,
)
from .examples import Example
from .service import Service

__all__ = [
    "BatchSizeError",
    "CannotListen",
    "Config",
    "ConfigError",
    "Example",
    "InvalidPayload",
    "JobExpired",
    "MalformedPayload",
    "NotAcceptable",
    "NotReady",
    "PayloadError",
    "ProtocolError",
    "QueueFull",
    "RegistrationError",
    "Service",
    "ServiceNotFound",
    "Unavailable",
    "UnsupportedMediaType",
    "VentuError",
]
