"""A wait that tunes itself: how long company is worth waiting for. No clock, no queue, no I/O."""

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Final

from .learning import Arrivals, BatchTime, bin_edges
from .policy import Running


@dataclass(frozen=True, slots=True)
class Decision:
    """What ``AdaptiveWait`` saw and chose, for people.

    Attributes:
        waiting: Jobs that would go now.
        room: Jobs that could join them.
        wanted: Jobs in a batch with which the workers would just never run out; 0 for one worker.
        expected: Jobs that are likely to come until the end of the wait that gains most.
        loss: What a job that misses this batch loses, in seconds.
        gain: What that wait gains, all jobs together, in seconds; 0 if no wait gains anything.
        wait: The seconds from now to which it came.
    """

    waiting: int
    room: int
    wanted: int
    expected: float
    loss: float
    gain: float
    wait: float


class AdaptiveWait:
    """Wait for company as long as it is likely to save more time than it costs.

    Nothing is set but a limit; what it needs, it learns from the jobs and batches themselves:
    how long a batch of n takes; how many jobs come per second; and how many come in each moment
    after a batch was finished while others waited (a closed loop of clients: most, soon; a stream:
    always the same) and after a first job came to an idle worker (a loop or a burst: many, soon).

    **Company.** A job that misses this batch loses the time until a worker comes free: the least
    of what this batch will take and what the busy workers still need, nothing if another worker
    is idle. A job that joins saves that, but each of those that wait now gets its answer later by
    what one more job takes, and each of those expected in the next batch sooner. Waiting until *t*
    gains the sum of the three for each job that is expected until *t* and finds room. It costs
    every waiting job the time until *t*, and every job that comes meanwhile its part of it. The
    *t* that gains most is taken; if none gains, none is.

    With one worker nobody is sure to be in the next batch, so company saves the fixed part of a
    batch and no more. And those expected during this one would all go later too: each counts for
    0.3 of a waiting job. A loop of clients around one worker is seen to be one: who has not come
    yet will come, and when all are there nobody is waited for (see ``Arrivals``). With several
    workers, who is missing may wait for the answer of another.

    **Spreading.** Several workers that each take a job as it comes are soon all busy with batches
    of one, and the rest waits. They just never run out if each batch has *n* jobs, where *n* jobs
    come in the time of a batch of *n* shared by the workers: n = rate * fixed / (workers - rate *
    each). With several workers a batch is held, idle ones or not, until so many are there; at low
    load that is one. As Deb and Serfozo show ("Optimal control of batch service queues", 1973), a
    threshold on the number that wait is the best rule; here it is learned.

    What both save in the end is the fixed part of batches. Where it is small beside the rest, a
    misjudged rate must not hold a model that takes jobs one by one: company is never worth more
    than 3 such parts to a job, and no batch is held for more jobs than take as long as 3.

    **Lateness.** Where others keep the processors busy, or timers are coarse, a wait ends later
    than it should, and the jobs that wait pay for that. So how late waits have ended lately is a
    cost of every wait for company; on a busy machine fewer are worth it.

    The later end of both waits counts. ``max_wait`` seconds after a worker was idle while a job
    waited, the batch goes in any case.
    """

    __slots__ = (
        *("max_wait", "_after_batch", "_after_first", "_arrivals", "_arrived", "_asked", "_bin"),
        *("_bin_at", "_due_at", "_late", "_numbers", "_rate", "_rate_at", "_since", "_times"),
    )

    _LATER: Final = 0.3  # 1.0 would be a stream for ever; closed loops have nobody left to come
    _AT_STAKE: Final = 3.0  # fixed parts of a batch; 5 does nearly as well
    _MEMORY: Final = 5.0  # batch times over which the rate of arrivals is averaged
    _SHORTEST: Final = 1e-6  # seconds from which a rate can be told
    _IN_TIME: Final = 5e-4  # seconds: about what a turn of a busy event loop takes
    _LATE_WEIGHT: Final = 0.1  # of the latest wait in how late waits end
    _LATE_KEPT: Final = 0.98  # from batch to batch: now and then it has to be tried again
    _LOOKED_AT: Final = 5  # busy workers: the oldest batches are likely to end first

    def __init__(self, max_wait: float) -> None:
        self.max_wait = max_wait
        edges = bin_edges(max_wait)
        self._times = BatchTime()
        self._after_batch, self._after_first = Arrivals(edges), Arrivals(edges)
        self._arrivals = self._after_batch
        self._arrived = 0
        self._bin, self._bin_at = 0, -1.0
        self._rate = self._rate_at = 0.0
        self._since = -1.0
        self._asked: tuple[float, ...] = ()
        self._due_at = self._late = 0.0
        self._numbers = (0, 0, 0, 0.0, 0.0, 0.0, 0.0)

    @property
    def last_decision(self) -> Decision:
        """The numbers behind the latest answer of ``due_at``; all 0 before any."""
        return Decision(*self._numbers)

    def explain(self) -> str:
        """Return the numbers behind the latest answer of ``due_at``, for people."""
        it = self.last_decision
        return (
            f"{it.waiting} waited, {it.expected:.1f} more were expected, {it.wanted} wanted;"
            f" a job that misses a batch loses {it.loss * 1e3:.3f} ms,"
            f" to wait for {it.wait * 1e3:.3f} ms gains {it.gain * 1e3:.3f} ms"
        )

    def job_arrived(self, now: float) -> None:
        """Count a job."""
        self._arrived += 1
        arrivals = self._arrivals
        if now != self._bin_at:  # many come in one turn of an event loop
            self._bin_at = now
            self._bin = bisect_right(arrivals.edges, now - arrivals.started_at) - 1
        arrivals.counts[self._bin] += 1

    def batch_released(self, size: int, now: float) -> None:
        """Learn who is missing, and forget some of how late waits have ended."""
        self._late *= self._LATE_KEPT
        self._arrivals.released(now)

    def passed_over(self) -> None:
        """Forget when the jobs that wait should have gone: they could not."""
        self._asked = ()

    def batch_finished(self, size: int, seconds: float, now: float) -> None:
        """Learn how long batches take, how many jobs come, and when."""
        self._times.add(size, seconds)
        elapsed = now - self._rate_at
        if elapsed >= self._SHORTEST:
            self._rate += self._share(elapsed) * (self._arrived / elapsed - self._rate)
            self._arrived, self._rate_at = 0, now
        self._arrivals.stop(now, self._rate)
        self._listen(self._after_batch, now, 0)
        self._asked = ()

    def due_at(
        self,
        now: float,
        *,
        since: float,
        waiting: int,
        room: int,
        idle: int,
        busy: Collection[Running],
    ) -> float:
        """Return the end of the wait that is worth it, ``now`` if none is. See the class."""
        asked: tuple[float, ...] = (now, since, waiting, room, idle, len(busy))
        if asked == self._asked:
            return self._due_at
        if self._asked and self._asked[0] < self._due_at <= now and self._asked[1] == since:
            late = min(now - self._due_at, self.max_wait)  # no worker may have been there
            self._late += self._LATE_WEIGHT * (max(0.0, late - self._IN_TIME) - self._late)
        self._asked = asked
        self._notice_wait(since, now, waiting)
        limit = since + self.max_wait
        is_alone = idle + len(busy) == 1
        wanted, spread_at = (
            (0, now) if is_alone else self._spread(now, waiting, room, idle + len(busy))
        )
        loss = 0.0 if idle > 1 else self._loss(now, waiting, busy)
        expected, gain, company_at = (
            self._company(now, limit, waiting, room, loss, is_alone) if loss else (0.0, 0.0, now)
        )
        due_at = spread_at if spread_at > company_at else company_at
        self._due_at = due_at if due_at < limit else max(now, limit)
        self._numbers = (waiting, room, wanted, expected, loss, gain, self._due_at - now)
        return self._due_at

    def _notice_wait(self, since: float, now: float, waiting: int) -> None:
        """If a first job came to an idle worker, listen to what follows that.

        What led to it is forgotten: it says nothing of what follows a batch while jobs wait.
        """
        if since == self._since:
            return
        self._since = since
        if since > self._arrivals.started_at:
            if self._arrivals is self._after_first:
                self._after_first.stop(now, self._rate)
            self._listen(self._after_first, now, waiting)

    def _listen(self, arrivals: Arrivals, now: float, here: int) -> None:
        """From now on, count jobs as those that follow an event of this kind."""
        self._arrivals, self._bin_at = arrivals, -1.0
        arrivals.start(now, here)

    def _share(self, elapsed: float) -> float:
        """Return how much these seconds count in the rate of arrivals."""
        return elapsed / (elapsed + self._MEMORY * self._times.mean)

    def _rate_now(self, now: float) -> float:
        """Return the arrivals per second; a silence since the last batch counts at once."""
        elapsed = max(now - self._rate_at, self._SHORTEST)
        return min(self._rate, 2 * (self._arrived + 2) / elapsed)

    def _spread(self, now: float, waiting: int, room: int, workers: int) -> tuple[int, float]:
        """Return how many jobs a batch should have, and when as many will be there."""
        rate = self._rate_now(now)
        if not rate:
            return 0, now
        fixed, each = self._times.fixed, self._times.each
        most = waiting + room
        if each * most > self._AT_STAKE * fixed:
            most = max(1, round(self._AT_STAKE * fixed / each))
        spare = workers - rate * each
        work = rate * fixed
        wanted = most if work >= spare * most else round(work / spare)
        return wanted, now + max(0, wanted - waiting) / rate

    def _loss(self, now: float, waiting: int, busy: Collection[Running]) -> float:
        """Return how long a job that misses the batch waits for the next worker, if none is idle.

        A batch that is late by some time is expected to need as much again: it may hang.
        """
        fixed, each = self._times.fixed, self._times.each
        loss = fixed + each * waiting
        ago = now - fixed  # when a batch was released whose fixed part ends now
        for batch in islice(busy, self._LOOKED_AT):
            needs = abs(batch.released_at + each * batch.size - ago)
            if needs < loss:
                loss = needs
        return loss

    def _worth(self, waiting: int, loss: float, others: float) -> float:
        """Return what it saves that a job is in this batch, not with ``others`` in the next."""
        fixed, each = self._times.fixed, self._times.each
        worth, most = loss + each * (others - waiting), self._AT_STAKE * fixed
        return worth if worth < most else most

    def _company(
        self, now: float, limit: float, waiting: int, room: int, loss: float, is_alone: bool
    ) -> tuple[float, float, float]:
        """Return the jobs expected, the gain and the end of the wait that gains most."""
        arrivals = self._arrivals
        zero = arrivals.started_at
        start = elapsed = now - zero
        # Jobs are counted from the event on here: those who came until now stand in ``before``.
        before, ends, totals = arrivals.ahead(elapsed, limit - zero, makes_up=is_alone)
        if not ends:
            return 0.0, 0.0, now
        during = arrivals.until(elapsed + loss)
        most, own = room + before, waiting - before
        later = during if is_alone else 0.0
        others = 0.0 if is_alone else min(during - before, waiting + room)
        worth = self._worth(waiting, loss, others)
        top = totals[-1]  # the most that a wait can gain, but for what it costs
        top = worth * ((most if most < top else top) - before)
        gain = best_total = best_end = 0.0
        earlier, less = before, self._LATER
        cost = waiting * self._late
        for end, total in zip(ends, totals, strict=True):
            if cost >= top - gain:
                break
            cost += (own + (earlier + total) / 2) * (end - start)
            start, earlier = end, total
            gains = worth * ((total if total < most else most) - before) - cost
            if later > total:
                gains -= less * (later - total) * (end - elapsed)
            if gains > gain:
                gain, best_total, best_end = gains, total, end
        return (best_total - before, gain, zero + best_end) if gain else (0.0, 0.0, now)
