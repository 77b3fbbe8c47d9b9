"""What the benchmarks share: a service with a small schema, and measuring in turns.

The machine is busy with others at times, and its clock speed changes. So the things that are
compared take turns, each is measured often, and the median counts; a ratio is the median of the
ratios of neighbours in time.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

from pydantic import BaseModel, Field

from ventu_lite import Service


class Request(BaseModel):
    text: str = Field(min_length=2, examples=["my cat is very cute"])


class Response(BaseModel):
    positive: float = Field(ge=0, le=1)
    negative: float = Field(ge=0, le=1)


def small_service(name: str, *, batch: bool) -> Service:
    """Return a service with all stages and a model that costs nothing."""
    service = Service(name)

    @service.preprocess
    def clean(request: Request) -> str:
        return request.text

    @service.postprocess
    def label(score: float) -> Response:
        return Response(positive=score, negative=1 - score)

    if batch:
        service.infer(batch=True)(lambda texts: [0.25] * len(texts))
    else:
        service.infer(lambda text: 0.25)
    return service


def cpu_seconds(call: Callable[[], object], times: int) -> float:
    """Return the CPU seconds of one call, from ``times`` of them."""
    started = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - started) / times


def in_turns(
    calls: Sequence[Callable[[], object]], *, times: int, rounds: int
) -> list[list[float]]:
    """Return the CPU seconds of one call, for each round a list with those of each callable."""
    return [[cpu_seconds(call, times) for call in calls] for _ in range(rounds)]


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """Return the median of each column."""
    return [median(column) for column in zip(*rounds, strict=True)]


def ratio(rounds: Sequence[Sequence[float]], of: int, to: int) -> float:
    """Return the median ratio of one column to another."""
    return median(values[of] / values[to] for values in rounds)


def python(*args: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, *args], check=True, capture_output=True, text=True
    ).stdout


def verdict(name: str, value: float, goal: float, unit: str) -> str:
    """Return a line that compares a result with its goal."""
    word = "reached" if value <= goal else "MISSED"
    return f"{name}: {value:.2f}{unit}, goal at most {goal:g}{unit}: {word}"
