"""What an adaptive wait learns: how long batches take, and when jobs come. No clock, no I/O."""

from bisect import bisect_left, bisect_right
from itertools import accumulate
from operator import mul
from typing import Final

_WEIGHT: Final = 0.1  # of the latest batch in what is learned: about the last 20 count

#: Where the bins of time after an event end: fine where clients in a closed loop come back, which
#: takes 1 to 3 ms where many are answered one after the other.
_EDGES_MS: Final = (
    *(0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5),
    *(2, 2.5, 3, 4, 5, 6, 8, 10),
)


# Those who are missing come in as much time again as has passed since the event, and so many
# seconds: a turn of a busy event loop.
_SOON: Final = 5e-4


class BatchTime:
    """How long a batch of n takes, as ``fixed + each * n``: weighted least squares, O(1).

    What told ``each`` is forgotten as fast as other sizes tell it anew: batches of nearly one size
    tell little but noise. How long a batch of the usual size takes is always that of the latest.

    One batch that hangs does not teach that all will: it counts as twice what was expected.
    """

    __slots__ = ("_count", "_covariance", "_seconds", "_size", "_variance", "each", "fixed")

    _TRUSTED: Final = 10  # batches after which an outlier can be told
    _SHORTEST: Final = 1e-4  # seconds that are no outlier in any case

    def __init__(self) -> None:
        self._count = 0
        self._size = self._seconds = self._variance = self._covariance = 0.0
        self.fixed = self.each = 0.0

    def add(self, size: int, seconds: float) -> None:
        """Learn from a batch."""
        if self._count >= self._TRUSTED:
            seconds = min(seconds, max(2 * self.of(size), self._SHORTEST))
        self._count += 1
        weight = max(_WEIGHT, 1 / self._count)
        more, longer = size - self._size, seconds - self._seconds
        self._size += weight * more
        self._seconds += weight * longer
        told = more * more
        kept = 1 - weight * (told / self._variance if told < self._variance else 1.0)
        self._variance = kept * (self._variance + weight * told)
        self._covariance = kept * (self._covariance + weight * more * longer)
        slope = self._covariance / self._variance if self._variance > 1e-9 else 0.0
        self.each = min(max(slope, 0.0), self._seconds / self._size)
        self.fixed = self._seconds - self.each * self._size

    @property
    def mean(self) -> float:
        """Seconds that a batch has taken lately."""
        return self._seconds

    def of(self, size: float) -> float:
        """Return the seconds that a batch of that size is expected to take; 0 before any."""
        return self.fixed + self.each * size


class Arrivals:
    """How many jobs come in each bin of time after an event of one kind.

    A bin that was seen in part, because the next event came, counts in part.

    A closed loop has the same clients each time: when fewer have come than usual, the others will
    come soon, and when all have, nobody will. In a stream those who are missing are not made up
    for. Which it is, is learned: what was missing at the release of a batch is compared with what
    came then beyond what was expected, in as much time again and a little.

    Attributes:
        edges: Where bins begin, in seconds after the event; the last one has no end.
        counts: Jobs per bin since the event; the caller adds them.
        made_up: How much of what is missing comes later: 0 in a stream, 1 in a loop.
        started_at: When the event was.
        totals: Jobs expected from the event until each edge.
    """

    __slots__ = (
        *("_counted", "_covariance", "_here", "_per_second", "_release", "_seen", "_usually_here"),
        *("_variance", "_widths", "counts", "edges", "made_up", "started_at", "totals"),
    )

    # Of a bin that much is seen if a job came: else one at its start, always, is infinite.
    _LEAST: Final = 0.5
    _PRIOR: Final = 0.3  # how much of a seen bin the plain rate of arrivals counts
    _SLOWLY: Final = 0.05  # weight of the latest batch in ``made_up``: most of it is noise
    _NOISE: Final = 0.1  # jobs squared; so little is missing where nothing is

    def __init__(self, edges: list[float]) -> None:
        self.edges = edges
        self._widths = [end - start for start, end in zip(edges, edges[1:], strict=False)]
        self.started_at = 0.0
        self.counts = [0] * len(edges)
        self._counted = [0.0] * len(edges)
        self._seen = [0.0] * len(edges)
        self._per_second = [0.0] * len(edges)
        self.totals = [0.0] * len(edges)
        self._here, self._usually_here = 0, 0.0
        self._release: tuple[float, int, float, float] | None = None
        self._variance = self._covariance = self.made_up = 0.0

    def start(self, now: float, here: int) -> None:
        """Take note of the event, and of how many of those who are counted are there already."""
        self._usually_here += _WEIGHT * (self._here - self._usually_here)
        self._here = here
        self._release = None
        self.started_at = now
        self.counts = [0] * len(self.edges)

    def ahead(
        self, elapsed: float, until: float, *, makes_up: bool
    ) -> tuple[float, list[float], list[float]]:
        """Return the jobs expected until now, and those until each edge from now on.

        Args:
            elapsed: Now, in seconds after the event.
            until: How far to look, in seconds after the event.
            makes_up: Whether those who are missing by now may come later.

        Returns:
            Jobs expected from the event until now; the edges in between; jobs expected from the
            event until each of these.
        """
        edges = self.edges
        first, beyond = bisect_right(edges, elapsed), bisect_right(edges, until)
        ends, totals = edges[first:beyond], self.totals[first:beyond]
        before = self.within(first - 1, elapsed)
        missing = self._still_coming(before) if makes_up and self.made_up else 0.0
        if missing:
            pace = missing / (elapsed + _SOON)
            caught_up = 2 * elapsed + _SOON if missing > 0 else 0.0
            totals = [
                total + (pace * (end - elapsed) if end < caught_up else missing)
                for end, total in zip(ends, totals, strict=True)
            ]
        return before, ends, totals

    def _still_coming(self, expected: float) -> float:
        """Return how many more than expected will come soon, or fewer than expected at all."""
        return self.made_up * (self._usually_here - self._here + expected - sum(self.counts))

    def released(self, now: float) -> None:
        """Take note of what is missing when a batch is released, the first after the event."""
        if self._release is None:
            elapsed = now - self.started_at
            came, expected = sum(self.counts), self.until(elapsed)
            missing = self._usually_here - self._here + expected - came
            self._release = elapsed, came, expected, missing

    def _learn_made_up(self, elapsed: float) -> None:
        """Learn how much of what was missing has come since, if that was seen for long enough."""
        release, self._release = self._release, None
        if release is None:
            return
        released, came, expected, missing = release
        end = bisect_left(self.edges, 2 * released + _SOON)
        if end == len(self.edges) or elapsed < self.edges[end]:
            return
        more = sum(self.counts[:end]) - came - (self.totals[end] - expected)
        self._variance += self._SLOWLY * (missing * missing - self._variance)
        self._covariance += self._SLOWLY * (missing * more - self._covariance)
        self.made_up = min(max(self._covariance / (self._variance + self._NOISE), 0.0), 1.0)

    def stop(self, now: float, rate: float) -> None:
        """Learn from what came since ``start``; ``rate`` is that of all arrivals per second."""
        edges, counted, seen = self.edges, self._counted, self._seen
        elapsed = now - self.started_at
        self._learn_made_up(elapsed)
        for n, width in enumerate(self._widths):
            start = edges[n]
            if elapsed <= start:
                break
            came = self.counts[n]
            part = _WEIGHT * min(1.0, max((elapsed - start) / width, self._LEAST if came else 0.0))
            counted[n] += _WEIGHT * came - part * counted[n]
            seen[n] += part * (1.0 - seen[n])
            jobs = (counted[n] + self._PRIOR * rate * width) / (seen[n] + self._PRIOR)
            self._per_second[n] = jobs / width
        self._per_second[-1] = rate
        jobs_per_bin = map(mul, self._per_second, self._widths)
        self.totals = list(accumulate(jobs_per_bin, initial=0.0))

    def until(self, elapsed: float) -> float:
        """Return how many jobs are expected from the event until so many seconds after it."""
        return self.within(bisect_right(self.edges, elapsed) - 1, elapsed)

    def within(self, n: int, elapsed: float) -> float:
        """Return the same where the bin is known, the one that begins at ``edges[n]``."""
        return self.totals[n] + self._per_second[n] * (elapsed - self.edges[n])


def bin_edges(max_wait: float) -> list[float]:
    """Return where bins begin, up to twice the longest wait but not beyond a second."""
    edges = [0.0, *(edge * 1e-3 for edge in _EDGES_MS)]
    while edges[-1] < min(2 * max_wait, 1.0):
        edges.append(edges[-1] * 1.5)
    return edges
