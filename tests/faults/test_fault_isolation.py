"""One bad item harms no other, in whatever way it is bad, alone or with another beside it."""

import contextlib
import http.client
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from deployments import EVERY, GUNICORN, Deployment, behind_batching, deployed, until
from lazily import Lazily
from processes import TIMEOUT, Answer, Process, short_directory

# Every stage can fail in many ways. What it raises tells all that was ever sent here, and so do the
# local variables of its frames.
MODEL = '''
import os, sys, time
from typing import Annotated

from flask import Response as HTTPResponse
from flask import abort
from pydantic import AfterValidator, BaseModel
from werkzeug.exceptions import Conflict

from ventu_lite import Service

everything = []


class Mute(Exception):
    """Cannot be shown."""

    def __str__(self):
        raise ValueError(f"EXCEPTION TEXT in a text: {everything}")

    __repr__ = __str__


def recurse(item):
    return recurse(item)


def fail(stage, todo):
    seen = list(everything)
    if todo == f"{stage} raises":
        raise RuntimeError(f"EXCEPTION TEXT of {stage}: {seen}")
    if todo == f"{stage} raises from another":
        try:
            raise OSError(f"EXCEPTION TEXT of a cause: {seen}")
        except OSError as exc:
            raise KeyError(f"EXCEPTION TEXT of {stage}: {seen}") from exc
    if todo == f"{stage} raises what cannot be shown":
        raise Mute
    if todo == f"{stage} recurses":
        recurse(seen)
    if todo == f"{stage} exits":
        sys.exit(f"EXCEPTION TEXT of {stage}: {seen}")
    if todo == f"{stage} stops":
        raise StopIteration(f"EXCEPTION TEXT of {stage}: {seen}")
    if todo == f"{stage} aborts":
        abort(410, f"{stage} says no")
    if todo == f"{stage} aborts with a redirect":
        abort(HTTPResponse(f"EXCEPTION TEXT of {stage}: {seen}", 302, {"X-Seen": str(seen)}))


def valid(todo):
    fail("validator", todo)
    return todo


class Request(BaseModel):
    secret: str
    todo: Annotated[str, AfterValidator(valid)] = ""
    size: int = 0


class Response(BaseModel):
    answer: str
    filler: str = ""


service = Service("isolation", request=Request, response=Response)


@service.preprocess
def note(item: Request) -> Request:
    everything.append(item.secret)
    fail("preprocess", item.todo)
    return item


def result(item):
    if item.todo == "result is an exception":
        return RuntimeError(f"EXCEPTION TEXT of a result: {everything}")
    if item.todo == "result is an HTTP exception":
        return Conflict("result says no")
    if item.todo == "result has a wrong type":
        return item, ["EXCEPTION TEXT of a response", *everything]
    if item.todo == "result is too large":
        return item, "x" * 9_000_000
    return item, item.secret


@service.infer(batch=True)
def run(batch: list[Request]) -> list[object]:
    with open("batches", "a") as file:
        file.write(" ".join(item.secret for item in batch) + "\\n")
    for item in batch:
        item.secret = item.secret[::-1]  # in place: whoever is given again has to be made anew
    for item in batch:
        fail("infer", item.todo)
        while item.todo == "slow" and os.path.exists("gate"):
            time.sleep(0.005)
    results = [result(item) for item in batch]
    for item in batch:
        if item.todo == "too few results":
            del results[0]
        if item.todo == "too many results":
            results.insert(0, result(item))
    return results


@service.postprocess
def say(result: tuple[Request, str]) -> Response:
    item, answer = result
    fail("postprocess", item.todo)
    return Response.model_construct(answer=answer, filler="y" * item.size)


app = service.app
'''
SIZE = 5
JSON, MSGPACK = "application/json", "application/msgpack"

# A batch goes when it is full, and not before.
FULL_BATCHES = {
    "VENTU_MAX_BATCH_SIZE": str(SIZE),
    "VENTU_MAX_WAIT_POLICY": "fixed",
    "VENTU_MAX_WAIT": "60",
    "VENTU_TIMEOUT": "60",
    "VENTU_MAX_MESSAGE": "8MiB",
    "VENTU_LOG_LEVEL": "debug",
}


@dataclass(frozen=True)
class Kind:
    """A way to be bad.

    Attributes:
        status: Of the answer.
        is_inferred: Whether it comes as far as the batch function.
        text: What the log must have of it, beside a traceback.
    """

    status: int
    is_inferred: bool
    text: str | None = None


KINDS = {
    "malformed": Kind(400, False),
    "misses a field": Kind(422, False),
    "is of a wrong type": Kind(422, False),
    "result is an exception": Kind(500, True, "EXCEPTION TEXT of a result"),
    "result is an HTTP exception": Kind(409, True),
    "result has a wrong type": Kind(500, True, "PydanticSerialization"),
    "result is too large": Kind(500, True),
}
HOW_STAGES_FAIL: dict[str, tuple[int, str | None]] = {
    "raises": (500, "EXCEPTION TEXT of"),
    "raises from another": (500, "EXCEPTION TEXT of a cause"),
    "raises what cannot be shown": (500, "Mute"),
    "recurses": (500, "RecursionError"),
    "exits": (500, "EXCEPTION TEXT of"),
    "stops": (500, "EXCEPTION TEXT of"),
    "aborts": (410, None),
    "aborts with a redirect": (500, "302"),
}
# Not all of them for every stage: each kind is tried with each other.
STAGES = {
    "validator": ["raises", "exits", "aborts"],
    "preprocess": ["raises", "raises what cannot be shown", "exits", "stops", "aborts"],
    "infer": list(HOW_STAGES_FAIL),
    "postprocess": ["raises", "exits", "stops", "aborts", "aborts with a redirect"],
}
for _stage, _ways in STAGES.items():
    for _way in _ways:
        _status, _text = HOW_STAGES_FAIL[_way]
        KINDS[f"{_stage} {_way}"] = Kind(_status, _stage in ("infer", "postprocess"), _text)


def kinds(how: str) -> list[str]:
    """Return the ways that there are; without messages none is too large for one."""
    return [name for name in KINDS if how != GUNICORN or name != "result is too large"]


ALONE = [pytest.param(how, name, id=f"{how}-{name}") for how in EVERY for name in kinds(how)]


@dataclass
class Item:
    """One request, and what belongs into its answer."""

    todo: str = ""
    codec: str = JSON
    size: int = 0
    timeout: float = TIMEOUT
    secret: str = field(default_factory=lambda: f"SECRET{uuid.uuid4().hex}")

    @property
    def payload(self) -> bytes:
        """The body."""
        value: dict[str, Any] = {"secret": self.secret, "todo": self.todo, "size": self.size}
        if self.todo == "misses a field":
            del value["secret"]
        if self.todo == "is of a wrong type":
            value["size"] = self.secret
        whole: bytes = json.dumps(value).encode() if self.codec == JSON else msgpack.packb(value)
        return whole[:-1] if self.todo == "malformed" else whole

    @property
    def answer(self) -> dict[str, str]:
        """What is right."""
        return {"answer": self.secret[::-1], "filler": "y" * self.size}


class Sent:
    """Requests that are all on their way before an answer is read."""

    def __init__(self, deployment: Deployment, items: Sequence[Item]) -> None:
        self.items = items
        self._connections = []
        for item in items:
            connection = http.client.HTTPConnection(
                "127.0.0.1", deployment.server.port, timeout=2 * TIMEOUT
            )
            headers = {"Content-Type": item.codec, "X-Request-Timeout": str(item.timeout)}
            connection.request("POST", "/inference", item.payload, headers)
            self._connections.append(connection)

    def answers(self) -> list[Answer]:
        """Return what comes, in the order of the requests."""
        return [self.answer(place) for place in range(len(self.items))]

    def answer(self, place: int) -> Answer:
        """Return the answer to one."""
        with contextlib.closing(self._connections[place]) as connection:
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, Deployment]]:
    """Deployments by the way they run."""
    with contextlib.ExitStack() as stack:
        yield Lazily(stack, MODEL, FULL_BATCHES)


def batch_with(deployment: Deployment, bad: Sequence[str]) -> list[Item]:
    """Return bad items among as many good ones as make the batch full.

    In the process of a WSGI server only those count that come as far as the batch function.
    """
    filling = len(bad)
    if deployment.how == GUNICORN:
        filling = sum(KINDS[name].is_inferred for name in bad)
    items = [Item() for _ in range(SIZE - filling)]
    for place, name in enumerate(bad):
        items.insert(2 * place + 1, Item(name))
    for place, item in enumerate(items):
        item.codec = (JSON, MSGPACK)[place // 2 % 2]
    return items


def decoded(answer: Answer) -> Any:
    """Return the body of an answer in the codec that its header tells."""
    if answer.headers["Content-Type"] == MSGPACK:
        return msgpack.unpackb(answer.body)
    return json.loads(answer.body)


def assert_good(item: Item, answer: Answer) -> None:
    assert (answer.status, decoded(answer)) == (200, item.answer)
    assert f'batch;desc="{SIZE}"' in answer.headers["Server-Timing"]
    told = f"{answer.headers}{answer.body!r}"
    assert set(re.findall("SECRET[0-9a-f]{32}|[0-9a-f]{32}TERCES", told)) == {item.secret[::-1]}


def assert_bad(item: Item, answer: Answer, deployment: Deployment) -> None:
    kind = KINDS[item.todo]
    problem = decoded(answer)
    assert (answer.status, problem["status"]) == (kind.status, kind.status)
    assert answer.headers["Content-Type"] in ("application/problem+json", MSGPACK)
    assert ("json" in answer.headers["Content-Type"]) == (item.codec == JSON)
    assert answer.headers["X-Seen"] is None
    told = f"{answer.headers}{answer.body!r}{problem}"
    inner = ("SECRET", "TERCES", "EXCEPTION", "Traceback", ".py", ", line ", "Error:", "Error(")
    assert [word for word in (*inner, str(deployment.directory)) if word in told] == []


def assert_isolated(deployment: Deployment, bad: Sequence[str]) -> list[Answer]:
    """Send a batch with these among good ones; return the answers to these."""
    items = batch_with(deployment, bad)
    answers = Sent(deployment, items).answers()
    for item, answer in zip(items, answers, strict=True):
        if item.todo:
            assert_bad(item, answer, deployment)
        else:
            assert_good(item, answer)
    return [answer for item, answer in zip(items, answers, strict=True) if item.todo]


def stage_process(deployment: Deployment) -> Process:
    """Return the process that writes what the stages log."""
    return deployment.workers[0] if deployment.workers else deployment.server.process


# ---------------------------------------------------------------------------------- bad items


@pytest.mark.parametrize(("how", "name"), ALONE)
def test_a_bad_item_fails_alone(running: dict[str, Deployment], how: str, name: str) -> None:
    deployment = running[how]
    (answer,) = assert_isolated(deployment, [name])
    text = KINDS[name].text
    if text is None:
        return
    id = decoded(answer)["instance"].rpartition("#")[2]
    process = stage_process(deployment)
    start = process.wait_for(f"{re.escape(id)} failed: .*\n").end()
    until(lambda: text in process.output[start:])
    # One that is returned was never raised, so there is nothing to trace back. What cannot be
    # written no line of the user's has raised, and serve logs our own lines here.
    is_of_the_user = not name.startswith("result has") or how != GUNICORN
    is_raised = is_of_the_user and name != "result is an exception"
    first = r"Traceback \(most recent" if is_raised else r"[\w.]+Error: "
    assert re.match(first, process.output[start:].lstrip())


@pytest.mark.parametrize(("how", "name"), ALONE)
def test_two_bad_items_fail_alone(running: dict[str, Deployment], how: str, name: str) -> None:
    """Each kind with each, and with itself."""
    names = kinds(how)
    for other in names[names.index(name) :]:
        assert_isolated(running[how], [name, other])


@pytest.mark.parametrize("how", EVERY)
def test_only_bad_items(running: dict[str, Deployment], how: str) -> None:
    """Five in one batch, none of them like another."""
    deployment = running[how]
    names = [name for name in kinds(how) if KINDS[name].is_inferred]
    for start in range(len(names) - SIZE + 1):
        items = [Item(name) for name in names[start : start + SIZE]]
        answers = Sent(deployment, items).answers()
        for item, answer in zip(items, answers, strict=True):
            assert_bad(item, answer, deployment)


@pytest.mark.parametrize("todo", ["too few results", "too many results"])
@pytest.mark.parametrize("how", EVERY)
def test_results_that_cannot_be_told_apart_reach_nobody(
    running: dict[str, Deployment], how: str, todo: str
) -> None:
    deployment = running[how]
    early = Item("misses a field")
    items = [Item(), Item(todo), Item(), Item(), *([Item()] if how == GUNICORN else []), early]
    answers = Sent(deployment, items).answers()
    assert [answer.status for answer in answers] == [500] * (len(items) - 1) + [422]
    for answer in answers:
        assert not re.search("SECRET|TERCES|results", f"{answer.headers}{answer.body!r}")
    stage_process(deployment).wait_for(rf"got {len(items) - 1} item\(s\), ")
    assert_isolated(deployment, [])


@pytest.mark.parametrize("how", EVERY)
def test_a_wrong_number_of_results_beside_an_item_that_raises(
    running: dict[str, Deployment], how: str
) -> None:
    """The batch is split, so some get through; what they get is theirs."""
    items = [Item("too few results"), Item(), Item("infer raises"), Item(), Item()]
    for answer, item in zip(Sent(running[how], items).answers(), items, strict=True):
        assert answer.status in ((500,) if item.todo else (200, 500))
        if answer.status == 200:
            assert_good(item, answer)
    assert_isolated(running[how], [])


# ----------------------------------------------------------------------- huge and slow items


@pytest.mark.parametrize("how", EVERY)
def test_huge_results_beside_small_ones(running: dict[str, Deployment], how: str) -> None:
    sizes = [0, 3_000_000, 1, 4_000_000, 10]
    items = [Item(size=size, codec=codec) for size in sizes for codec in (JSON, MSGPACK)]
    for half in (items[::2], items[1::2]):
        for item, answer in zip(half, Sent(running[how], half).answers(), strict=True):
            assert_good(item, answer)


@behind_batching
def test_of_results_that_do_not_fit_into_one_message_the_largest_fails(
    running: dict[str, Deployment], how: str
) -> None:
    items = [Item(size=size) for size in (0, 5_000_001, 1, 5_000_000, 10)]
    answers = Sent(running[how], items).answers()
    assert answers.pop(1).status == 500
    del items[1]
    for item, answer in zip(items, answers, strict=True):
        assert_good(item, answer)
    stage_process(running[how]).wait_for("answering 500 for the largest results")


@pytest.mark.parametrize("how", EVERY)
def test_deadlines_are_kept_beside_a_slow_item(running: dict[str, Deployment], how: str) -> None:
    """Who can wait gets his answer; nobody gets that of one who could not."""
    deployment = running[how]
    gate = deployment.directory / "gate"
    gate.touch()
    items = [Item(timeout=4.0), Item("slow"), Item(), Item(timeout=4.0), Item()]
    sent = Sent(deployment, items)
    for place in (0, 3):
        answer = sent.answer(place)
        assert (answer.status, decoded(answer)["status"]) == (504, 504)
        assert b"SECRET" not in answer.body
    gate.unlink()
    for place in (1, 2, 4):
        assert_good(items[place], sent.answer(place))
    assert_isolated(deployment, ["infer raises"])


@behind_batching
def test_others_do_not_wait_for_a_slow_item(how: str) -> None:
    """They go to the other worker, as long as it takes."""
    env = {"VENTU_TIMEOUT": "60"}
    with (
        short_directory() as directory,
        deployed(how, MODEL, directory, workers=2, env=env) as deployment,
    ):
        gate, log = directory / "gate", directory / "batches"
        gate.touch()
        slow = Item("slow")
        sent = Sent(deployment, [slow])
        until(lambda: log.exists() and slow.secret in log.read_text())
        others = [Item() for _ in range(40)]
        for start in range(0, 40, 8):
            part = others[start : start + 8]
            for item, answer in zip(part, Sent(deployment, part).answers(), strict=True):
                assert (answer.status, decoded(answer)) == (200, item.answer)
        gate.unlink()
        answer = sent.answer(0)
        assert (answer.status, decoded(answer)) == (200, slow.answer)
