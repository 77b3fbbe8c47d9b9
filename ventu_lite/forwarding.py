"""Requests of ``service.ask`` in a process that runs no stage: workers elsewhere answer them."""

from collections.abc import Callable, Sequence
from typing import Any

from .asking import payload_of, response_of
from .codecs import sniff
from .composition import Composition
from .outcomes import Rejected

#: Has payloads inferred within so many seconds; returns for each the status and what was said.
AskWorkers = Callable[[Sequence[bytes], float], list[tuple[int, bytes | str]]]


def forward(
    values: Sequence[Any], seconds: float, *, ask: AskWorkers, composition: Composition
) -> list[Any]:
    """Have Python values answered by workers.

    Args:
        values: What clients would send.
        seconds: How long that may take.
        ask: Asks the workers.
        composition: The service.

    Returns:
        For each value the response, the ``InferenceFailed`` that a worker told of, or the
        ``Rejected`` of what went wrong in this process: nobody else logs or counts that.
    """
    setting = composition.config.codec
    answers: list[Any] = [None] * len(values)
    payloads: dict[int, bytes] = {}
    for place, value in enumerate(values):
        try:
            payloads[place] = payload_of(value, composition.request, setting)
        except Exception as exc:
            answers[place] = Rejected.of(exc)
    said = ask(list(payloads.values()), seconds) if payloads else []
    for (place, payload), (status, body) in zip(payloads.items(), said, strict=True):
        codec = sniff(payload) if setting == "auto" else setting
        answers[place] = response_of(status, body, codec, composition.response)
    return answers
