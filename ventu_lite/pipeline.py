"""From payload bytes to answer bytes through the stages of a service, one item or many.

    payload ─parse─▶ item ─preprocess─▶ item ─infer─▶ result ─postprocess─▶ value ─render─▶ bytes

Every step works on one item, but for ``infer``, which sees the whole batch. An item that fails
becomes a ``Rejected`` at its own place, skips the rest of the way and harms no other.
No I/O and no locks here: the shells say when a step runs and in which thread.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from .codecs import sniff
from .config import Codec
from .errors import InvalidResponse
from .isolation import Again, at, for_accepted
from .misfits import kind_of, misfit
from .outcomes import Rejected, count_rejected
from .validation import Schema

Outcome = bytes | Rejected
Mode = Literal["single", "batch"]


@dataclass(frozen=True, slots=True)
class Run:
    """One batch that went all the way.

    Attributes:
        outcomes: One for each payload, in the same order.
        preprocess, infer, postprocess: Seconds that the stages took for the whole batch;
            parsing counts as preprocess, rendering as postprocess.
        batch_size: How many items reached ``infer``.
    """

    outcomes: list[Outcome]
    preprocess: float
    infer: float
    postprocess: float
    batch_size: int


@dataclass(frozen=True)
class Pipeline:
    """The composed stages of one service.

    ``prepare`` and ``finish`` may be called from several threads; ``infer`` only from one at a
    time when ``mode`` is "batch".

    Attributes:
        request, response: The schemas.
        preprocess, postprocess: The user's functions, ``None`` where there are none.
        infer: Items in, results or ``Rejected`` out, in the same order; see ``isolation``.
        mode: Whether ``infer`` calls a function of one item or of many.
        last: ``name (file:line)`` of the stage that returns responses, for messages.
        clock: Monotonic seconds, as fine as they can be had.
    """

    request: Schema
    response: Schema
    preprocess: Callable[[Any], Any] | None
    infer: Callable[[Sequence[Any], Again], list[Any]]
    postprocess: Callable[[Any], Any] | None
    mode: Mode
    last: str
    clock: Callable[[], float]

    def prepare(self, payload: bytes, codec: Codec) -> Any:
        """Return the item in a payload, preprocessed, or a ``Rejected``."""
        return self._prepare(self.request.parse, payload, codec)

    def prepare_value(self, value: Any) -> Any:
        """Return the item in a Python value, preprocessed, or a ``Rejected``."""
        return self._prepare(self.request.parse_value, value)

    def _prepare(self, read: Callable[..., Any], *given: Any) -> Any:
        try:
            item = read(*given)
            return item if self.preprocess is None else self.preprocess(item)
        except BaseException as exc:
            return _rejected(exc)

    def finish(self, result: Any, codec: Codec) -> Outcome:
        """Return the bytes of a result, postprocessed and validated, or a ``Rejected``."""
        outcome: Outcome = self._finish(result, codec)
        return outcome

    def finish_value(self, result: Any) -> Any:
        """Return a result, postprocessed and validated, as a Python value, or a ``Rejected``."""
        return self._finish(result, None)

    def _finish(self, result: Any, codec: Codec | None) -> Any:
        if isinstance(result, Rejected):
            return result
        try:
            value = result if self.postprocess is None else self.postprocess(result)
            try:
                answer = self.response.validate(value)
            except ValidationError as exc:
                raise self._invalid(value, exc) from None  # it would show the value
            return answer if codec is None else self._written(answer, codec)
        except BaseException as exc:
            return _rejected(exc)

    def _invalid(self, value: Any, exc: ValidationError) -> InvalidResponse:
        return InvalidResponse(f"{self.last} returned {misfit(value, exc, self.response.adapter)}")

    def _written(self, answer: Any, codec: Codec) -> bytes:
        try:
            return self.response.encode(answer, codec)
        except Exception as exc:
            said = f"{type(exc).__name__}: {exc}"
            raise InvalidResponse(
                f"{self.last} returned {kind_of(answer)}, which cannot be written: {said}"
            ) from exc

    def infer_prepared(self, prepared: Sequence[Any], again: Again) -> Sequence[Any]:
        """Return one result for each item, passing those over that were rejected before.

        Args:
            prepared: What ``prepare`` has returned.
            again: Prepares the item at a place anew.
        """
        if count_rejected(prepared):
            accepted = [n for n, item in enumerate(prepared) if not isinstance(item, Rejected)]
            again = at(accepted, again)
        return for_accepted(prepared, lambda items: self.infer(items, again))

    def run(self, payloads: Sequence[bytes], codec: Codec | None = None) -> Run:
        """Take a batch all the way; each payload is answered in the codec in which it came.

        Args:
            payloads: What the clients sent.
            codec: The codec of all of them; ``None`` to tell each by its first byte.
        """
        clock = self.clock
        codecs = list(map(sniff, payloads)) if codec is None else [codec] * len(payloads)
        started = clock()
        prepared = list(map(self.prepare, payloads, codecs))
        prepared_at = clock()
        results = self.infer_prepared(prepared, lambda n: self.prepare(payloads[n], codecs[n]))
        inferred_at = clock()
        outcomes = list(map(self.finish, results, codecs))
        return Run(
            outcomes,
            preprocess=prepared_at - started,
            infer=inferred_at - prepared_at,
            postprocess=clock() - inferred_at,
            batch_size=len(prepared) - count_rejected(prepared),
        )


def _rejected(exc: BaseException) -> Rejected:
    """Return what becomes of an item for which a stage raised ``exc``.

    Only Ctrl-C ends more than the item: ``sys.exit()`` in a stage must not take the others along.
    """
    if isinstance(exc, KeyboardInterrupt):
        raise exc
    return Rejected.of(exc)
