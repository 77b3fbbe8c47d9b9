"""``check``: does everybody get his own answer, and what does batching bring?

The examples run alone and in batches, with and without a bad item among them. An item's answer
must not depend on its company, its place, or a neighbour's failure.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from .config import Codec
from .errors import ConfigError
from .examples import Probe, difference_of
from .outcomes import Rejected
from .pipeline import Outcome
from .report import Report, Timing, remarks_on
from .schema_examples import unread_extra_in
from .tracebacks import in_one_line

if TYPE_CHECKING:
    from .batch_runner import BatchRunner
    from .service import Service

# Neither codec can read these, and nobody else may notice.
_BAD: Final[dict[Codec, bytes]] = {"json": b'{"unfinished', "msgpack": b"\xc1"}
_ROUNDS: Final = 3  # the best of so many is what the model can do, the rest is the machine's noise

# What to do where a function raises for many together, for copies of one example too, or not.
_LOWER: Final = "lower max_batch_size"
_ALIKE: Final = (
    "as many copies of one example pass: pad items to one size or give `key=`, so that only items"
    " of one size meet"
)


def check(service: "Service", *, clock: Callable[[], float] = time.perf_counter) -> Report:
    """Set a service up and try its examples in every company.

    Raises:
        ConfigError: Set-up succeeded, but there are no examples.
        Exception: Set-up failed, or an example is rejected in the warm-up.
    """
    composition = service.compose()
    runtime = service.runtime
    old_name = unread_extra_in(composition.request, composition.response)
    too_large = _TooLarge()
    runner = runtime.act_as_worker(too_large)
    runtime.startup.run()
    if not composition.probes:
        raise ConfigError(_without_example(service.name, old_name or composition.doubt))
    examiner = _Examiner(runner, composition.probes)
    doubt = examiner.doubt_about_order()
    sizes = _sizes(composition.max_batch_size)
    complaints = examiner.complaints(sorted({1, 2, composition.max_batch_size}))
    timings = [examiner.time(size, clock) for size in sizes]
    complaints += too_large.complaints(examiner.run_copies)
    is_batch = runner.mode == "batch"
    remarks = remarks_on(timings, is_batch=is_batch, timeout=service.config.timeout)
    return Report(complaints, [*filter(None, [old_name, doubt]), *remarks], timings)


def _without_example(service: str, reason: str) -> str:
    fix = "give it one or, better, two whose answers differ:"
    return (
        f"service {service!r} gets through its set-up, but nothing was asked: it has no example;"
        f" {reason or f'{fix} Service({service!r}, examples=[...])'}"
    )


def _sizes(most: int) -> list[int]:
    """Return 1, 2, 4, … and the largest."""
    return sorted({2**power for power in range(most.bit_length())} | {most})


class _TooLarge:
    """Takes note of the batches for which the function raised, though no item was to blame."""

    def __init__(self) -> None:
        self._failed: dict[int, tuple[str, BaseException]] = {}

    def __call__(self, where: str, size: int, exc: BaseException) -> None:
        self._failed[size] = where, exc

    def complaints(self, run_copies: Callable[[int], None]) -> list[str]:
        """Return what is wrong with the smallest of them, if there were any.

        Args:
            run_copies: Runs batches of a size, the items of each being alike.
        """
        if not self._failed:
            return []
        size, (where, exc) = min(self._failed.items(), key=itemgetter(0))
        self._failed.clear()
        run_copies(size)
        advice = _LOWER if self._failed else _ALIKE
        return [
            f"{where} raised for {size} items together, but for none of them in a smaller batch:"
            f" {in_one_line(exc)}; {advice}"
        ]


class _Examiner:
    """Runs batches made of examples and compares."""

    def __init__(self, runner: "BatchRunner", probes: Sequence[Probe]) -> None:
        self._runner = runner
        # One batch has one codec here; examples that only msgpack can say are tried by themselves.
        codec = probes[0].codec
        self._probes = [probe for probe in probes if probe.codec == codec]
        self._codec = codec
        self._alone = [self._run([probe.payload])[0] for probe in self._probes]

    def complaints(self, sizes: Sequence[int]) -> list[str]:
        """Return how answers differ from those of the examples alone, and from the expected."""
        found = [
            f"example {number}: answered {found.describe('expected')}"
            for number, (probe, outcome) in enumerate(
                zip(self._probes, self._alone, strict=True), 1
            )
            if not isinstance(outcome, Rejected) and (found := probe.difference(outcome))
        ]
        for size in sizes:
            found += _summed_up(self._compare(size, bad_at=None))
            found += _summed_up(self._compare(size, bad_at=size // 2))
        return found

    def doubt_about_order(self) -> str:
        """Return why answers in a wrong order would not be noticed, "" if they would."""
        if len({probe.payload for probe in self._probes}) < 2:
            return (
                "with one example the order of answers cannot be checked;"
                " give two whose answers differ"
            )
        first, *others = self._alone
        if any(self._difference(other, first) for other in others):
            return ""
        return (
            "with the same answer to all examples their order cannot be checked;"
            " give two whose answers differ"
        )

    def run_copies(self, size: int) -> None:
        """Run as many copies of each example together."""
        for probe in self._probes:
            self._run([probe.payload] * size)

    def time(self, size: int, clock: Callable[[], float]) -> Timing:
        """Measure a batch of a size."""
        payloads = [probe.payload for probe in self._cycled(self._probes, size)]
        seconds = []
        for _ in range(_ROUNDS):
            started = clock()
            self._run(payloads)
            seconds.append(clock() - started)
        return Timing(size, min(seconds))

    def _compare(self, size: int, *, bad_at: int | None) -> Iterator[str]:
        payloads = [probe.payload for probe in self._cycled(self._probes, size)]
        if bad_at is not None:
            payloads[bad_at] = _BAD[self._codec]
        company = f"in a batch of {size}" + (" beside a bad item" if bad_at is not None else "")
        outcomes = self._run(payloads)
        if len(outcomes) != size:
            yield f"{company}: {len(outcomes)} answers"
            return
        expected = self._cycled([*enumerate(self._alone, 1)], size)
        for place, (outcome, (number, alone)) in enumerate(zip(outcomes, expected, strict=True)):
            if place == bad_at:
                if not (isinstance(outcome, Rejected) and outcome.status == 400):
                    yield f"{company}: the bad item was not refused with 400"
            elif difference := self._difference(outcome, alone):
                yield f"example {number} {company}: {difference}"

    def _difference(self, outcome: Outcome, alone: Outcome) -> str:
        if isinstance(outcome, Rejected) and isinstance(alone, Rejected):
            same = outcome.status == alone.status
            return "" if same else f"status {outcome.status}, alone status {alone.status}"
        if isinstance(outcome, Rejected):
            return f"status {outcome.status}, alone it is answered ({outcome.exc!r:.200})"
        if isinstance(alone, Rejected):
            return f"answered, alone it gets status {alone.status}"
        found = difference_of(alone, outcome, self._codec)
        return f"answered {found.describe('alone')}" if found else ""

    def _run(self, payloads: Sequence[bytes]) -> list[Outcome]:
        return self._runner.run(payloads).outcomes

    @staticmethod
    def _cycled(parts: Sequence[Any], size: int) -> list[Any]:
        return list(islice(cycle(parts), size))


def _summed_up(complaints: Iterable[str]) -> list[str]:
    """Return the first complaint about one batch, and how many others there are."""
    first, *others = [*complaints] or [""]
    if not first:
        return []
    return [f"{first} (and {len(others)} more in that batch)" if others else first]
