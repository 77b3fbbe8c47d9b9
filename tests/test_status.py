"""What a service with examples says of its health: it really runs them, but not too often."""

from collections.abc import Callable
from typing import Any, cast
from uuid import uuid4

import msgpack
import pytest
from processes import TIMEOUT
from waiting import turn_until

from ventu_lite import Service
from ventu_lite.addresses import UnixAddress
from ventu_lite.batching.dispatcher import BatchTiming, Dispatcher
from ventu_lite.batching.jobs import Failure, Job
from ventu_lite.batching.server import BatchingService, ServiceOptions
from ventu_lite.batching.status import PlainStatus
from ventu_lite.config import Codec, Config
from ventu_lite.errors import QueueFull
from ventu_lite.health import HEALTH_CACHE
from ventu_lite.http.server import run
from ventu_lite.protocol import Results
from ventu_lite.serving.probing import ProbingStatus, _detail

Health = tuple[bool, dict[str, str]]


class Jobs:
    """A dispatcher that keeps what it is given; ``now`` is the time."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.refuses_with: Exception | None = None
        self.refusal = ""
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def moment(self) -> float:
        return self.now - 0.25

    def add_first(self, job: Any) -> None:
        if self.refuses_with is not None:
            raise self.refuses_with
        self.waiting.append(job)

    def answer(self, *bodies: bytes) -> None:
        """Answer the waiting jobs, oldest first."""
        waiting, self.waiting = self.waiting, []
        for job, body in zip(waiting, bodies, strict=True):
            job.answered(200, body, b"")


class Place:
    """A status, the jobs that it queues, and the answers that were given."""

    def __init__(self, examples: list[Any]) -> None:
        self.jobs = Jobs()
        self.answers: list[Health] = []
        options = ServiceOptions("x", [UnixAddress("s")])
        service = BatchingService(Config(timeout=5), options, self._make)
        service.dispatcher = cast(Dispatcher, self.jobs)
        registry = Service("probed", request=int, response=int, examples=examples)
        registry.infer(lambda item: item)
        self.status = ProbingStatus(service, registry.compose().probes)
        service.links[0].open = cast(Any, [self])  # the one worker
        self.is_ready = True

    def _make(self, service: BatchingService) -> Any:
        return None

    def ask(self) -> None:
        self.status.health(lambda ok, body: self.answers.append((ok, body)))

    def said(self) -> list[tuple[bool, str, str]]:
        """Return and forget the answers that were given."""
        answers, self.answers = self.answers, []
        assert all(body["service"] == "OK" for _, body in answers)
        return [(ok, body["inference"], body.get("detail", "")) for ok, body in answers]


def play(test: Callable[[Place], None], *examples: Any) -> None:
    async def main() -> None:
        test(Place(list(examples)))

    run(main())


GOOD = (True, "OK", "")


def test_the_examples_run_as_jobs() -> None:
    def test(place: Place) -> None:
        place.ask()
        (one, two) = place.jobs.waiting
        assert (one.payload, two.payload) == (b"1", b"2")
        assert (len(one.id), one.queued_at, one.deadline) == (36, 99.75, 104.75)
        assert one.id != two.id
        assert place.said() == []
        place.jobs.answer(b"10", b"anything")
        assert place.said() == [GOOD]

    play(test, (1, 10), 2)


def test_a_result_is_kept_for_a_moment_and_shared() -> None:
    def test(place: Place) -> None:
        place.ask()
        place.ask()
        assert len(place.jobs.waiting) == 1
        place.jobs.answer(b"1")
        place.jobs.now += HEALTH_CACHE
        place.ask()
        assert place.said() == [GOOD] * 3
        place.jobs.now += 0.1
        place.ask()
        assert len(place.jobs.waiting) == 1

    play(test, 1)


def test_another_answer_than_expected_is_an_error() -> None:
    def test(place: Place) -> None:
        place.ask()
        place.jobs.answer(b"1", b"3")
        detail = "example 2: the answer differs from the expected one"
        assert place.said() == [(False, "Error", detail)]

    play(test, 1, (2, 2))


@pytest.mark.parametrize(
    ("fail", "detail"),
    [
        (lambda job: job.answered(422, b"{}", b""), "example 1: status 422"),
        (lambda job: job.answered(500, b'{"detail": "it broke"}', b""), "status 500: it broke"),
        (lambda job: job.answered(200, b"fine", b""), "example 1: the answer cannot be read: "),
        (lambda job: job.answered(200, b"9" * 400, b""), "example 1: the answer cannot be read: "),
        (lambda job: job.failed(Failure(504, "expired", "too late")), "status 504: too late"),
    ],
)
def test_an_example_that_fails_is_an_error(fail: Callable[[Any], None], detail: str) -> None:
    def test(place: Place) -> None:
        place.ask()
        for job in place.jobs.waiting:
            fail(job)
        ((ok, inference, said),) = place.said()
        assert (ok, inference) == (False, "Error")
        assert detail in said

    play(test, (1, 1), (2, 2))


@pytest.mark.parametrize(
    ("body", "codec", "said"),
    [
        (b'{"detail": "it broke"}', "json", ": it broke"),
        (msgpack.packb({"detail": "it broke"}), "msgpack", ": it broke"),
        (msgpack.packb({"detail": "x" * 999}), "msgpack", ": " + "x" * 298),
        (b"\xc1", "msgpack", ""),
        (b"fine", "json", ""),
        (b"[]", "json", ""),
    ],
)
def test_the_detail_of_a_problem_document_is_told(body: bytes, codec: Codec, said: str) -> None:
    assert _detail(body, codec) == said


class Worker:
    """A connected worker that answers when it is told to."""

    is_ready = True

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.batch: dict[str, bytes] = {}
        dispatcher.ready(self)

    def send(self, payloads: dict[str, bytes]) -> None:
        self.batch = payloads

    def cut_off(self, reason: str) -> None: ...

    async def works_on(self, *payloads: bytes) -> None:
        """Wait for this batch."""
        await turn_until(lambda: [*self.batch.values()] == [*payloads])

    def echoes(self) -> None:
        self._dispatcher.results(self, Results(self.batch, {}))


class ClientJob(Job):
    """A job of somebody who does not care."""

    def answered(self, status: int, body: bytes, timing: BatchTiming) -> None: ...

    def failed(self, failure: Failure) -> None: ...


def test_load_does_not_keep_an_example_from_the_model() -> None:
    """A balancer that drops whoever is overloaded gives that load to those who have as much."""
    registry = Service("probed", request=int, response=int, examples=[(1, 1)])
    registry.infer(lambda item: item)
    probes = registry.compose().probes
    said: list[Health] = []

    async def main() -> None:
        config = Config(capacity=2, max_batch_size=2, max_wait=0.0)
        options = ServiceOptions("x", [UnixAddress("s")])
        service = BatchingService(config, options, PlainStatus)
        dispatcher, status = service.dispatcher, ProbingStatus(service, probes)
        worker = Worker(dispatcher)
        service.links[0].open = cast(Any, [worker])
        add(dispatcher, b"7")
        await worker.works_on(b"7")
        add(dispatcher, b"8", b"9")
        with pytest.raises(QueueFull):
            add(dispatcher, b"10")

        status.health(lambda ok, body: said.append((ok, body)))
        assert said == []
        worker.echoes()
        await worker.works_on(b"1", b"8")
        worker.echoes()
        await turn_until(lambda: said == [(True, {"service": "OK", "inference": "OK"})])
        dispatcher.close()

    run(main())


def add(dispatcher: Dispatcher, *payloads: bytes) -> None:
    now = dispatcher.moment()
    for payload in payloads:
        dispatcher.add(ClientJob(str(uuid4()), payload, len(payload), now, now + TIMEOUT))


def test_an_example_that_cannot_be_queued_leaves_nobody_without_an_answer() -> None:
    def test(place: Place) -> None:
        place.jobs.refuses_with = RuntimeError("a policy that is broken")
        place.ask()
        assert place.said() == [(False, "Error", "example 1: a policy that is broken")]
        place.jobs.refuses_with = None
        place.jobs.now += HEALTH_CACHE + 1
        place.ask()
        place.jobs.answer(b"1", b"2")
        assert place.said() == [GOOD]

    play(test, 1, 2)


def test_without_an_example_nothing_is_known() -> None:
    def test(place: Place) -> None:
        place.ask()
        ((ok, inference, detail),) = place.said()
        assert (ok, inference) == (True, "Unknown")
        assert "there is no example to run" in detail

    play(test)


def test_without_a_worker_no_example_is_run() -> None:
    def test(place: Place) -> None:
        place.is_ready = False
        place.ask()
        assert place.said() == [(False, "Error", "no worker is connected")]
        assert not place.jobs.waiting
        place.jobs.refusal = "no worker starts"
        place.ask()
        assert place.said() == [(False, "Error", "no worker starts")]

    play(test, 1)
