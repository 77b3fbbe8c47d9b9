"""Payloads to outcomes: every failure belongs to one item."""

import itertools
import json
import re
import traceback
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException, ImATeapot, abort
from werkzeug.wrappers import Response as WerkzeugResponse

from ventu_lite.config import Codec
from ventu_lite.errors import InvalidPayload, InvalidResponse, JobExpired, NotReady
from ventu_lite.isolation import BatchInfer, SingleInfer
from ventu_lite.outcomes import UNEXPECTED, Rejected
from ventu_lite.pipeline import Mode, Outcome, Pipeline
from ventu_lite.problems import encode_problem, problem
from ventu_lite.validation import Schema


class Request(BaseModel):
    text: str = Field(min_length=2)


class Response(BaseModel):
    score: float = Field(ge=0, le=1)


def preprocess(request: Request) -> str:
    if request.text.startswith("bad in preprocess"):
        raise RuntimeError(f"secret of {request.text}")
    if request.text == "teapot":
        abort(418, "short and stout")
    if request.text == "leave":
        raise SystemExit(1)
    return request.text


def infer(texts: list[str]) -> list[str]:
    return texts


def postprocess(text: str) -> Any:
    if text.startswith("bad in postprocess"):
        raise KeyError(f"secret of {text}")
    if text.startswith("bad response"):
        return {"score": len(text)}
    if text == "leave late":
        raise SystemExit(1)
    return Response(score=len(text) / 100)


def clock_of(*seconds: float) -> Callable[[], float]:
    return iter(seconds).__next__


def pipeline(
    model: Callable[[list[Any]], Any] = infer,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    mode: Mode = "batch",
    **stages: Any,
) -> Pipeline:
    calls: Any = BatchInfer(model, timeout=5, clock=lambda: 0.0, on_blameless=lambda *_: None)
    if mode == "single":
        calls = SingleInfer(lambda item: model([item])[0])
    return Pipeline(
        Schema(stages.get("request", Request)),
        Schema(stages.get("response", Response)),
        preprocess=stages.get("preprocess", preprocess),
        infer=calls,
        postprocess=stages.get("postprocess", postprocess),
        mode=mode,
        last="infer (app.py:7)",
        clock=clock,
    )


def encoded(text: str, codec: Codec) -> bytes:
    return json.dumps({"text": text}).encode() if codec == "json" else msgpack.packb({"text": text})


def decoded(body: Outcome, codec: Codec) -> Any:
    assert isinstance(body, bytes)
    return json.loads(body) if codec == "json" else msgpack.unpackb(body)


def body_of(rejected: Rejected) -> bytes:
    document = problem(rejected.status, rejected.detail, "/inference#id", rejected.extra)
    return encode_problem(document, "json")


EIGHT: list[tuple[bytes, bytes, int]] = [
    (b"{not json", b"\xc1", 400),
    (b'{"text": "\xff\xfe"}', b"\x81\xa4text\xa2\xff\xfe", 400),
    (b'{"text": 1}', msgpack.packb({"text": 1}), 422),
    (encoded("bad in preprocess", "json"), encoded("bad in preprocess", "msgpack"), 500),
    (encoded("bad in postprocess", "json"), encoded("bad in postprocess", "msgpack"), 500),
    (encoded("bad response", "json"), encoded("bad response", "msgpack"), 500),
    (encoded("teapot", "json"), encoded("teapot", "msgpack"), 418),
    (encoded("good", "json"), encoded("good", "msgpack"), 200),
]


@pytest.mark.parametrize("mode", ["batch", "single"])
@pytest.mark.parametrize("codecs", list(itertools.product([0, 1], repeat=2)), ids=str)
def test_eight_payloads_get_eight_outcomes(codecs: tuple[int, int], mode: Mode) -> None:
    """The codecs alternate as told, so that both meet in one batch."""
    payloads = [row[:2][codecs[place % 2]] for place, row in enumerate(EIGHT)]
    run = pipeline(mode=mode).run(payloads)
    found = [o.status if isinstance(o, Rejected) else 200 for o in run.outcomes]
    assert found == [row[2] for row in EIGHT]
    assert decoded(run.outcomes[7], "msgpack" if codecs[1] else "json") == {"score": 0.04}
    assert run.batch_size == 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["good", "bad in preprocess", "bad in postprocess", "bad response", "bad infer", ""]
            ),
            st.sampled_from(["json", "msgpack"]),
        ),
        max_size=12,
    )
)
def test_no_body_shows_data_of_others_or_the_text_of_an_exception(
    rows: list[tuple[str, Codec]],
) -> None:
    def model(texts: list[str]) -> list[str]:
        if any(text.startswith("bad infer") for text in texts):
            raise ValueError(f"secrets: {texts}")
        return texts

    texts = [f"{kind} SECRET{place}" if kind else "" for place, (kind, _) in enumerate(rows)]
    payloads = [encoded(text, codec) for text, (_, codec) in zip(texts, rows, strict=True)]
    for text, (kind, codec), outcome in zip(
        texts, rows, pipeline(model).run(payloads).outcomes, strict=True
    ):
        if kind == "good":
            assert decoded(outcome, codec) == {"score": len(text) / 100}
        else:
            assert isinstance(outcome, Rejected)
            assert outcome.status == (500 if kind else 422)
            assert b"SECRET" not in body_of(outcome)
            assert b"secret" not in body_of(outcome)


def halve(batch: list[list[float]]) -> list[float]:
    for item in batch:
        item[0] /= 2
    if any(item[0] < 0 for item in batch):
        raise ValueError("below zero")
    return [item[0] for item in batch]


@pytest.mark.parametrize("codec", ["json", None])
def test_a_function_that_changes_its_items_changes_no_answer(codec: Codec | None) -> None:
    bare = pipeline(halve, request=list[float], response=float, preprocess=None, postprocess=None)
    payloads = [b"[2]", b"{unfinished", b"[4]", b"[-6]", b"[8]"]
    outcomes = bare.run(payloads, codec).outcomes
    assert [outcomes[n] for n in (0, 2, 4)] == [b"1.0", b"2.0", b"4.0"]
    assert [outcome.status for outcome in outcomes if isinstance(outcome, Rejected)] == [400, 500]


def test_a_setting_of_one_codec_is_not_guessed() -> None:
    run = pipeline().run([encoded("good", "msgpack"), b"3"], codec="msgpack")
    assert decoded(run.outcomes[0], "msgpack") == {"score": 0.04}
    assert isinstance(run.outcomes[1], Rejected)


def test_an_empty_batch_calls_nothing() -> None:
    def model(texts: list[str]) -> list[str]:
        raise AssertionError("called")

    run = pipeline(model).run([])
    assert (run.outcomes, run.batch_size) == ([], 0)


def test_a_batch_of_rejected_items_calls_nothing() -> None:
    def model(texts: list[str]) -> list[str]:
        raise AssertionError("called")

    run = pipeline(model).run([b"{}", b"["])
    assert [o.status for o in run.outcomes if isinstance(o, Rejected)] == [422, 400]
    assert run.batch_size == 0


def test_the_seconds_of_each_step_are_told() -> None:
    run = pipeline(clock=clock_of(1.0, 1.5, 3.5, 7.5)).run([encoded("good", "json")])
    assert (run.preprocess, run.infer, run.postprocess) == (0.5, 2.0, 4.0)


class Pair(BaseModel):
    left: int
    right: list[str]


@pytest.mark.parametrize(
    ("schema", "returned", "said"),
    [
        pytest.param(
            int,
            "SECRET",
            "str of length 6, which does not fit the response schema int: Input should be a valid"
            " integer, unable to parse string as an integer, found str of length 6",
            id="alone",
        ),
        pytest.param(
            Pair,
            {"left": None, "right": ["SECRET", 7]},
            "dict of length 2, which does not fit the response schema Pair: left: Input should be"
            " a valid integer, found NoneType; right.1: Input should be a valid string, found int",
            id="fields",
        ),
        pytest.param(
            Pair,
            {"text": "SECRET"},
            "dict of length 1, which does not fit the response schema Pair: left: Field required;"
            " right: Field required",
            id="missing",
        ),
        pytest.param(
            list[int],
            ["SECRET"] * 1000,
            r"list of length 1000, .*; 2: Input should be [^;]*, found str of length 6;"
            " and 997 more",
            id="many",
        ),
    ],
)
def test_a_response_of_a_wrong_type_is_told_by_stage_field_and_type(
    schema: Any, returned: Any, said: str
) -> None:
    """What is no response may be what a client has sent, so that no value is told."""
    bare = pipeline(
        lambda batch: [returned], request=int, response=schema, preprocess=None, postprocess=None
    )
    (outcome,) = bare.run([b"1"]).outcomes
    for rejected in (outcome, bare.finish_value(returned)):
        assert isinstance(rejected, Rejected) and rejected.status == 500
        assert isinstance(rejected.exc, InvalidResponse)
        assert re.fullmatch(rf"infer \(app\.py:7\) returned {said}", str(rejected.exc))
        assert "SECRET" not in "".join(traceback.format_exception(rejected.exc))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_a_response_that_no_codec_can_say_is_told_by_its_stage(codec: Codec) -> None:
    returned = {"n": 1, "bad": object()}
    schema: Any = {"request": int, "response": dict[str, Any]}
    bare = pipeline(lambda batch: [returned], preprocess=None, postprocess=None, **schema)
    (outcome,) = bare.run([b"1" if codec == "json" else b"\x01"], codec).outcomes
    assert isinstance(outcome, Rejected) and outcome.is_fault
    assert isinstance(outcome.exc, InvalidResponse)
    assert re.fullmatch(
        r"infer \(app\.py:7\) returned dict of length 2, which cannot be written: .*Error: .*"
        r"neither JSON nor msgpack can say object",
        str(outcome.exc),
    )
    cause = outcome.exc.__cause__
    assert cause and cause.__context__ is None  # how it was found out is nobody's business


def test_a_stage_that_cannot_make_its_response_keeps_its_own_error() -> None:
    def make(result: Any) -> Pair:
        return Pair(left="x", right=[])  # type: ignore[arg-type]

    (outcome,) = pipeline(postprocess=make).run([encoded("good", "json")]).outcomes
    assert isinstance(outcome, Rejected)
    assert isinstance(outcome.exc, ValidationError)


def test_stages_may_be_left_out() -> None:
    bare = pipeline(
        lambda batch: [2 * x for x in batch],
        request=int,
        response=float,
        preprocess=None,
        postprocess=None,
    )
    assert bare.run([b"1", b"2"]).outcomes == [b"2.0", b"4.0"]
    assert bare.infer([bare.prepare_value(2)], bare.prepare_value) == [4]
    assert bare.finish_value(4) == 4.0


@pytest.mark.parametrize("text", ["leave", "leave late"])
def test_sys_exit_in_a_stage_harms_no_other(text: str) -> None:
    run = pipeline().run([encoded("good", "json"), encoded(text, "json")])
    assert isinstance(run.outcomes[0], bytes)
    assert isinstance(run.outcomes[1], Rejected)
    assert isinstance(run.outcomes[1].exc, SystemExit)


def test_sys_exit_in_a_stage_harms_no_other_value() -> None:
    one = pipeline()
    for rejected in (one.prepare_value({"text": "leave"}), one.finish_value("leave late")):
        assert isinstance(rejected, Rejected)
        assert isinstance(rejected.exc, SystemExit)


def interrupt(value: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
def test_ctrl_c_in_a_stage_is_not_caught(stage: str) -> None:
    stages: dict[str, Any] = {stage: interrupt}
    one = pipeline(**stages)
    with pytest.raises(KeyboardInterrupt):
        one.run([encoded("good", "json")])
    with pytest.raises(KeyboardInterrupt):
        one.finish_value(one.prepare_value({"text": "good"}))


def test_values_go_the_same_way_as_payloads() -> None:
    one = pipeline()
    values = [{"text": "good"}, Request(text="teapot"), {}]
    prepared = [one.prepare_value(value) for value in values]
    results = one.infer_prepared(prepared, lambda n: one.prepare_value(values[n]))
    answers = [one.finish_value(result) for result in results]
    assert answers[0] == Response(score=0.04)
    assert [answer.status for answer in answers[1:]] == [418, 422]


def test_a_value_that_fails_late_is_rejected() -> None:
    rejected = pipeline().finish_value("bad in postprocess")
    assert isinstance(rejected, Rejected)
    assert rejected.status == 500


# ---------------------------------------------------------------------------- outcomes


class Custom(HTTPException):
    """Says nothing about its status."""


@pytest.mark.parametrize(
    ("exc", "status", "detail", "reason", "is_fault"),
    [
        pytest.param(ValueError("text"), 500, UNEXPECTED, "failed", True, id="unexpected"),
        pytest.param(ImATeapot("tea"), 418, "tea", "failed", False, id="HTTPException"),
        pytest.param(
            ImATeapot({"a": 1}),  # type: ignore[arg-type]  # Flask's abort takes anything
            418,
            "{'a': 1}",
            "failed",
            False,
            id="a description that is no text",
        ),
        pytest.param(
            ImATeapot(response=WerkzeugResponse(status=409)),
            409,
            ImATeapot.description,
            "failed",
            False,
            id="a response of its own",
        ),
        pytest.param(
            ImATeapot(response=WerkzeugResponse(status=302)),
            500,
            UNEXPECTED,
            "failed",
            True,
            id="a redirect, which the log explains",
        ),
        pytest.param(Custom(), 500, UNEXPECTED, "failed", True, id="without a status"),
        pytest.param(
            InvalidPayload([{"loc": []}], 1),
            422,
            "1 field does not fit the request schema",
            "invalid",
            False,
            id="invalid",
        ),
        pytest.param(JobExpired("late"), 504, "late", "expired", False, id="expired"),
        pytest.param(NotReady("private"), 500, UNEXPECTED, "failed", True, id="another's state"),
    ],
)
def test_what_becomes_of_an_exception(
    exc: Exception, status: int, detail: str, reason: str, is_fault: bool
) -> None:
    rejected = Rejected.of(exc)
    assert (rejected.status, rejected.detail, rejected.reason) == (status, detail, reason)
    assert rejected.is_fault is is_fault
    assert rejected.exc is exc


def test_field_errors_go_into_the_document() -> None:
    rejected = Rejected.of(InvalidPayload([{"loc": ["a"]}], 3))
    assert rejected.extra == {"errors": [{"loc": ["a"]}], "error_count": 3}
