"""What becomes of one item: its bytes, or a ``Rejected`` that stays at the item's own place."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, final

from werkzeug.exceptions import HTTPException, default_exceptions

from .errors import InvalidPayload, JobExpired, PayloadError, VentuError
from .headers import whole_seconds
from .media_types import PROBLEM_TYPE
from .problems import encode_problem, problem, reason_of

Reason = Literal["invalid", "failed", "expired"]

# Nothing of an unexpected exception may reach a client: its text can hold anybody's data.
UNEXPECTED = "the service failed on this request; its log says why, under this instance"


class InferenceFailed(HTTPException, VentuError):
    """One request of ``Service.ask`` failed.

    Where a route does not catch it, Flask answers with the status and the problem document that
    ``POST /inference`` would have given, unless the app has an error handler for it: one for this
    class, or one for the status. In a process that runs the stages itself, ``__cause__`` is the
    exception of the stage.

    Attributes:
        code: The HTTP status, 400 to 599.
        description: What a client may read.
        extra: Further members of the problem document, such as ``errors``. What JSON cannot say is
            put in words.
        retry_after: Seconds after which a new try makes sense, if that is known.
        job: Under which id the log of a worker says why; "" if none does.
        is_fault: Whether the service is to blame, and not the request.
    """

    retry_after: float | None = None
    job: str = ""
    is_fault: bool = False

    def __init__(self, status: int, detail: str, extra: dict[str, Any] | None = None) -> None:
        if not (isinstance(status, int) and 400 <= status <= 599):
            raise ValueError(f"status {status!r}, expected 400 to 599")
        # Flask looks for a handler by the class alone.
        self.__class__ = _with_status(type(self), status)  # type: ignore[arg-type]  # it is hashable
        super().__init__(description=detail)
        self.extra = extra or {}

    def __reduce__(self) -> tuple[Any, ...]:
        # HTTPException keeps no arguments with which a copy could be made.
        named = type(self).__bases__[0]
        return named, (self.code, self.description, self.extra), vars(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code}: {self.description}>"

    def get_body(self, *args: Any) -> str:
        """Return the problem document; see werkzeug for the arguments."""
        document = problem(self.code or 500, self.description or "", extra=self.extra)
        return encode_problem(document, "json").decode()

    def get_headers(self, *args: Any) -> list[tuple[str, str]]:
        """Return the headers of the response; see werkzeug for the arguments."""
        headers = [("Content-Type", PROBLEM_TYPE["json"])]
        if self.retry_after is not None:
            headers.append(("Retry-After", str(whole_seconds(self.retry_after))))
        return headers


@cache
def _with_status(cls: type[InferenceFailed], status: int) -> Any:
    """Return a subclass that is werkzeug's exception of the status, too, if there is one."""
    bases = (cls, default_exceptions.get(status, HTTPException))
    return type(cls.__name__, bases, {"code": status})


@final
@dataclass(frozen=True, slots=True)
class Rejected:
    """One job failed; the others did not.

    Attributes:
        status: The HTTP status of the answer, 400 to 599.
        detail: What the client may read.
        reason: Whose fault it was, the label of the metric.
        exc: The exception, for the log and for ``predict``.
        extra: Further members of the problem document.
        is_fault: Whether the service is to blame, so that the log gets the traceback.
    """

    status: int
    detail: str
    reason: Reason
    exc: BaseException
    extra: dict[str, Any] | None = None
    is_fault: bool = False

    @property
    def fault(self) -> BaseException | None:
        """What the log must tell about, if it is not only the client's doing."""
        if self.is_fault:
            return self.exc
        return self.exc.__cause__ if self.reason == "expired" else None

    def forget_frames(self) -> None:
        """Let go of the frames of its exceptions, once they are logged.

        They lead back to the whole batch, which would stay until the garbage collector comes.
        """
        todo: list[BaseException | None] = [self.exc]
        seen = set()
        while todo:
            exc = todo.pop()
            if exc is not None and id(exc) not in seen:
                seen.add(id(exc))
                exc.__traceback__ = None
                todo += [exc.__cause__, exc.__context__]

    @classmethod
    def of(cls, exc: BaseException) -> "Rejected":
        """Return what becomes of an item for which ``exc`` was raised; that never raises."""
        try:
            return cls._of_known(exc)
        except Exception as odd:  # a text made only now, or a property of the user's own
            odd.__cause__ = exc
            return cls.unexpected(odd)

    @classmethod
    def _of_known(cls, exc: BaseException) -> "Rejected":
        if isinstance(exc, InvalidPayload):
            extra = {"errors": exc.errors, "error_count": exc.error_count}
            return cls(exc.status, str(exc), "invalid", exc, extra)
        if isinstance(exc, PayloadError):
            return cls(exc.status, str(exc), "invalid", exc)
        if isinstance(exc, JobExpired):
            return cls(exc.status, str(exc), "expired", exc)
        if isinstance(exc, InferenceFailed):
            status, detail = exc.code or 500, exc.description or ""
            return cls(status, detail, reason_of(status), exc, exc.extra, exc.is_fault)
        if isinstance(exc, HTTPException):
            return cls._of_http(exc)
        return cls.unexpected(exc)

    @classmethod
    def unexpected(cls, exc: BaseException, status: int = 500) -> "Rejected":
        """Return what becomes of an item for which ``exc`` was raised, and only the log says it."""
        return cls(status, UNEXPECTED, reason_of(status), exc, is_fault=True)

    @classmethod
    def _of_http(cls, exc: HTTPException) -> "Rejected":
        status = exc.code if exc.response is None else exc.response.status_code
        if not (isinstance(status, int) and 400 <= status <= 599):
            return cls.unexpected(exc)
        return cls(status, str(exc.description or ""), reason_of(status), exc)


def count_rejected(items: Iterable[object]) -> int:
    """Return how many of them are a ``Rejected``: mostly none."""
    return list(map(type, items)).count(Rejected)
