"""What ``check`` found, in words: a table, what is broken, and advice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .slowness import too_slow

# Beyond this share of the best throughput a larger batch only makes clients wait longer.
_ENOUGH: Final = 0.9
# Seconds: what HTTP and the processes cost a batch anyway.
_QUICK: Final = 0.001

_PASSED: Final = "passed: the answers are the same alone, in a batch, and beside a bad item"
_FAILED: Final = "failed: correct what is BROKEN above"


@dataclass(frozen=True)
class Timing:
    """How long one batch took.

    Attributes:
        size: Items in it.
        seconds: The best of some runs, all stages.
    """

    size: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Items per second of one worker that always has such a batch."""
        return self.size / self.seconds if self.seconds else float("inf")


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        complaints: What is wrong with the answers; empty if nothing is.
        remarks: What could not be checked, and advice.
        timings: One for each batch size, smallest first.
    """

    complaints: list[str]
    remarks: list[str]
    timings: list[Timing]

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield f"{'batch size':>10}  {'ms/batch':>10}  {'ms/item':>10}  {'items/s':>10}"
        for timing in self.timings:
            each = timing.seconds * 1e3
            yield (
                f"{timing.size:>10}  {each:>10.3f}  {each / timing.size:>10.3f}"
                f"  {timing.per_second:>10.0f}"
            )
        yield from (f"BROKEN: {complaint}" for complaint in self.complaints)
        yield from (f"note: {remark}" for remark in self.remarks)
        yield _FAILED if self.complaints else _PASSED


def remarks_on(timings: Sequence[Timing], *, is_batch: bool, timeout: float) -> list[str]:
    """Return advice.

    Args:
        timings: One for each batch size, smallest first.
        is_batch: Whether there is a batch function.
        timeout: The setting.
    """
    remarks = []
    largest = timings[-1]
    if said := too_slow(largest.size, largest.seconds, timeout, alone=timings[0].seconds):
        remarks.append(said)
    if is_batch:
        remarks.append(_advice(timings))
    return remarks


def _advice(timings: Sequence[Timing]) -> str:
    best = max(timing.per_second for timing in timings)
    gain = best / timings[0].per_second
    is_quick = timings[-1].seconds < _QUICK
    if is_quick and not gain > 2:  # it is no number where all took no time at all
        return "the largest batch takes less time than HTTP around it: its size hardly matters"
    enough = next(t for t in timings if t.per_second >= _ENOUGH * best)
    if gain < 1.2:
        return (
            f"a batch gets through only {gain:.2f} × as many items per second as one by one:"
            " a plain @service.infer would do as well"
        )
    said = f"batches get through {gain:.1f} × as many items per second as one by one"
    if is_quick:
        return f"{said}, though HTTP around the largest takes longer"
    if enough is timings[-1]:
        return f"{said}, the largest most: a larger max_batch_size may bring more"
    return (
        f"{said}, and those of {enough.size} through {_ENOUGH:.0%} of that:"
        f" max_batch_size={enough.size} keeps answers quick"
    )
