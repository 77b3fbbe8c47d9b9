"""A bad item harms no other: the calls of the model, and who is blamed."""

import itertools
import sys
import traceback
from collections import UserDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import NotFound

from ventu_lite.errors import BatchSizeError
from ventu_lite.isolation import BatchInfer, SingleInfer, hashable
from ventu_lite.outcomes import Rejected


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Model:
    """Doubles every item but the bad ones, for which it raises; remembers its calls."""

    def __init__(self, bad: dict[int, BaseException] | None = None) -> None:
        self.bad = bad or {}
        self.calls: list[list[int]] = []

    def __call__(self, batch: list[int]) -> list[int]:
        self.calls.append(batch)
        for item in batch:
            if item in self.bad:
                raise self.bad[item]
        return [2 * item for item in batch]


def batch_infer(
    fn: Callable[[list[Any]], Any],
    *,
    clock: Callable[[], float] = Clock(),  # noqa: B008  # it never moves
    timeout: float = 5.0,
    max_batch_size: int | None = None,
    isolate: bool = True,
    key: Callable[[Any], Hashable] | None = None,
    on_blameless: Callable[[str, int, BaseException], None] = lambda *_: None,
) -> Callable[[Sequence[Any]], list[Any]]:
    infer = BatchInfer(
        fn,
        max_batch_size=max_batch_size,
        isolate=isolate,
        key=key,
        timeout=timeout,
        clock=clock,
        on_blameless=on_blameless,
    )
    return lambda items: infer(items, lambda place: items[place])


def single_infer(fn: Callable[[Any], Any]) -> Callable[[Sequence[Any]], list[Any]]:
    infer = SingleInfer(fn)
    return lambda items: infer(items, never)


def never(place: int) -> Any:
    raise AssertionError(f"item {place} is made anew")


def statuses(results: Sequence[Any]) -> list[int]:
    return [result.status if isinstance(result, Rejected) else 200 for result in results]


# ------------------------------------------------------------- functions that change items


def halve_in_place(batch: list[list[float]]) -> list[float]:
    for item in batch:
        item[0] /= 2
    if any(item[0] < 0 for item in batch):
        raise ValueError("below zero")
    return [item[0] for item in batch]


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 3}, {"key": lambda item: item[0] > 4}])
def test_no_call_gets_what_another_has_changed(options: dict[str, Any]) -> None:
    """Or a bad item would silently make the answers of its neighbours wrong."""
    given = [2.0, 4.0, -6.0, 8.0, 10.0]
    infer = BatchInfer(
        halve_in_place, **options, timeout=5.0, clock=Clock(), on_blameless=lambda *_: None
    )
    results = infer([[number] for number in given], lambda place: [given[place]])
    assert statuses(results) == [200, 200, 500, 200, 200]
    assert [*results[:2], *results[3:]] == [1.0, 2.0, 4.0, 5.0]


def test_what_cannot_be_made_anew_is_rejected_alone() -> None:
    gone = Rejected.of(NotFound())
    infer = BatchInfer(
        Model({0: KeyError()}), timeout=5.0, clock=Clock(), on_blameless=lambda *_: None
    )
    results = infer(range(4), lambda place: gone if place == 3 else place)
    assert statuses(results) == [500, 200, 200, 404]
    assert results[1:3] == [2, 4]


# ------------------------------------------------------------------------ single items


def test_a_single_function_is_called_for_each_item_in_order() -> None:
    assert single_infer(lambda item: 2 * item)([1, 2, 3]) == [2, 4, 6]


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        pytest.param(ValueError("x"), 500, id="any"),
        pytest.param(NotFound(), 404, id="HTTPException"),
        pytest.param(SystemExit(1), 500, id="sys.exit"),
        pytest.param(GeneratorExit(), 500, id="another BaseException"),
    ],
)
def test_an_item_that_raises_alone_harms_no_other(exc: BaseException, status: int) -> None:
    def infer(item: int) -> int:
        if item == 1:
            raise exc
        return item

    results = single_infer(infer)([0, 1, 2])
    assert statuses(results) == [200, status, 200]
    assert results[1].exc is exc


@pytest.mark.parametrize("kind", [single_infer, batch_infer])
def test_ctrl_c_is_not_caught(kind: Callable[[Any], Any]) -> None:
    def infer(item: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kind(infer)([1, 2])


# ------------------------------------------------------------------------- splitting


def test_a_good_batch_is_one_call() -> None:
    model = Model()
    assert batch_infer(model)([1, 2, 3]) == [2, 4, 6]
    assert model.calls == [[1, 2, 3]]


def test_no_items_are_no_call() -> None:
    model = Model()
    assert batch_infer(model)([]) == []
    assert model.calls == []


def test_two_guilty_of_32_cost_at_most_22_calls_wherever_they_stand() -> None:
    for pair in itertools.combinations(range(32), 2):
        model = Model(dict.fromkeys(pair, ValueError("guilty")))
        results = batch_infer(model)(range(32))
        assert statuses(results) == [500 if i in pair else 200 for i in range(32)]
        assert len(model.calls) <= 22


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_only_the_guilty_fail_and_the_calls_have_a_limit(size: int, guilty: set[int]) -> None:
    model = Model(dict.fromkeys(guilty, ValueError("guilty")))
    results = batch_infer(model)(range(size))
    assert statuses(results) == [500 if i in guilty else 200 for i in range(size)]
    assert len(model.calls) <= 2 * size - 1


def test_a_function_that_fails_only_for_many_at_once_is_told_of() -> None:
    """Nobody else would learn that a model has no memory for such a batch: all are answered."""
    failure = MemoryError("no room on the device")
    told: list[Any] = []

    def infer(batch: list[int]) -> list[int]:
        if len(batch) > 4:
            raise failure
        return batch

    split = batch_infer(infer, on_blameless=lambda *what: told.append(what))
    assert split(range(32)) == list(range(32))
    assert told == [("infer", 32, failure)]


@pytest.mark.parametrize("size", [1, 8])
def test_who_is_told_of_a_guilty_item_is_not_told_of_its_batch(size: int) -> None:
    told: list[Any] = []
    model = Model({0: ValueError("guilty")})
    batch_infer(model, on_blameless=lambda *what: told.append(what))(range(size))
    assert told == []


@pytest.mark.parametrize(
    "exc",
    [NotFound("no such model"), SystemExit(1), GeneratorExit()],
    ids=lambda e: type(e).__name__,
)
def test_the_guilty_item_gets_its_own_exception(exc: BaseException) -> None:
    results = batch_infer(Model({2: exc}))(range(4))
    assert results[2].exc is exc
    assert statuses(results).count(200) == 3


class Falsy(Exception):
    """Some exceptions are lists of errors, and this one is empty."""

    def __len__(self) -> int:
        return 0


def test_without_isolation_all_fail_after_one_call() -> None:
    model = Model({3: ValueError("guilty")})
    assert statuses(batch_infer(model, isolate=False)(range(32))) == [500] * 32
    assert len(model.calls) == 1


@pytest.mark.parametrize("isolate", [True, False])
def test_a_lone_item_gets_its_own_status(isolate: bool) -> None:
    assert statuses(batch_infer(Model({0: NotFound()}), isolate=isolate)([0])) == [404]


def test_without_isolation_a_status_of_one_item_is_not_given_to_all() -> None:
    results = batch_infer(Model({0: NotFound("private")}), isolate=False)([0, 1])
    assert statuses(results) == [500, 500]
    assert "private" not in results[1].detail
    assert isinstance(results[0].exc.__cause__, NotFound)


@pytest.mark.parametrize("exc", [NotFound("private"), Falsy()], ids=["HTTPException", "falsy"])
def test_it_gives_up_after_the_timeout_with_500_for_the_rest(exc: Exception) -> None:
    """Also for an item that is left alone: nobody has tried it, so the status is not its own."""
    clock = Clock()
    model = Model({0: exc, 3: exc})

    def slow(batch: list[int]) -> list[int]:
        clock.now += 2
        return model(batch)

    results = batch_infer(slow, clock=clock, timeout=7)(range(4))
    assert model.calls == [[0, 1, 2, 3], [0, 1], [0], [1]]
    assert statuses(results)[1:] == [200, 500, 500]
    assert results[0].exc is exc
    assert results[3].exc.__cause__ is exc


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        pytest.param({"max_batch_size": 2}, [[0, 1], [2, 3]], id="split by size"),
        pytest.param({"key": lambda item: item % 2}, [[0, 2], [1, 3]], id="split by key"),
    ],
)
def test_each_part_is_called_once_even_when_the_time_is_over(
    options: dict[str, Any], calls: list[list[int]]
) -> None:
    """The timeout is one for the whole batch, so that four parts do not take four times as long."""
    clock = Clock()
    model = Model(dict.fromkeys(range(4), ValueError("guilty")))

    def slow(batch: list[int]) -> list[int]:
        clock.now += 10
        return model(batch)

    assert statuses(batch_infer(slow, clock=clock, **options)(range(4))) == [500] * 4
    assert model.calls == calls


def test_the_function_may_keep_and_change_its_list() -> None:
    def greedy(batch: list[int]) -> list[int]:
        results = list(batch)
        batch.clear()
        if 1 in results and len(results) > 1:
            raise ValueError("try again")
        return results

    assert batch_infer(greedy)([0, 1, 2]) == [0, 1, 2]


# ------------------------------------------------------------------------ size and key


@pytest.mark.parametrize(
    ("size", "sizes"), [(None, [7]), (7, [7]), (3, [3, 3, 1]), (1, [1] * 7), (100, [7])]
)
def test_no_call_is_larger_than_the_ceiling(size: int | None, sizes: list[int]) -> None:
    model = Model()
    assert batch_infer(model, max_batch_size=size)(range(7)) == [2 * i for i in range(7)]
    assert [len(call) for call in model.calls] == sizes


@given(st.lists(st.integers(0, 3)), st.integers(1, 5))
def test_items_of_different_keys_never_share_a_call(items: list[int], size: int) -> None:
    model = Model()
    infer = batch_infer(model, key=lambda item: item % 3, max_batch_size=size)
    assert infer(items) == [2 * item for item in items]
    assert all(len({item % 3 for item in call}) == 1 for call in model.calls)


def raising_key(item: int) -> Hashable:
    if item == 1:
        raise KeyError("private")
    return item


def leaving_key(item: int) -> Hashable:
    raise SystemExit


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(raising_key, [200, 500, 200], id="raises"),
        pytest.param(lambda item: [] if item == 1 else item, [200, 500, 200], id="not hashable"),
        pytest.param(leaving_key, [500, 500, 500], id="sys.exit"),
    ],
)
def test_an_item_whose_key_cannot_be_told_fails_alone(
    key: Callable[[int], Hashable], expected: list[int]
) -> None:
    assert statuses(batch_infer(Model(), key=key)([0, 1, 2])) == expected


@pytest.mark.parametrize("key", [[7], {"a": 7}, np.zeros(2), (1, [7])], ids=type)
def test_a_key_that_cannot_be_one_is_told_without_its_value(key: Any) -> None:
    results = batch_infer(Model(), key=hashable(lambda item: key, "infer (app.py:7)"))([0])
    assert str(results[0].exc) == (
        f"key of infer (app.py:7) returned {type(key).__name__}, expected something hashable, such"
        " as a string or a tuple of numbers"
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes came with Python 3.11")
def test_an_exception_that_is_a_result_says_once_whose_it_is() -> None:
    exc = ValueError("one for all")
    batch_infer(lambda batch: [exc] * len(batch))([0, 1, 2])
    assert traceback.format_exception_only(exc) == [
        "ValueError: one for all\n",
        "returned by infer\n",
    ]


def test_ctrl_c_in_a_key_is_not_caught() -> None:
    def key(item: int) -> Hashable:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch_infer(Model(), key=key)([1])


# ----------------------------------------------------------------------------- results


class Tensor:
    """As much of a torch tensor as matters here."""

    def __init__(self, *rows: Any, ndim: int = 1) -> None:
        self.rows, self.ndim = rows, ndim

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a 0-d tensor")
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.rows[place]


class Frame:
    """As much of a pandas DataFrame as matters here: counting through it gives column names."""

    columns = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    "returned",
    [
        pytest.param([10, 20], id="list"),
        pytest.param((10, 20), id="tuple"),
        pytest.param((x for x in (10, 20)), id="generator"),
        pytest.param({"a": 10, "b": 20}.values(), id="values of a dict"),
        pytest.param(np.array([10, 20]), id="array"),
        pytest.param(Tensor(10, 20), id="tensor"),
        pytest.param(range(10, 30, 10), id="range"),
    ],
)
def test_results_may_be_any_sequence(returned: Any) -> None:
    assert batch_infer(lambda batch: returned)([1, 2]) == [10, 20]


def test_rows_of_an_array_are_results() -> None:
    results = batch_infer(lambda batch: np.array([[1, 2], [3, 4]]))([1, 2])
    assert [list(row) for row in results] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        pytest.param([1], "infer got 2 item(s), returned 1 result(s); ", id="too few"),
        pytest.param([1, 2, 3], "infer got 2 item(s), returned 3 result(s); ", id="too many"),
        pytest.param(iter([1]), "infer got 2 item(s), returned 1 result(s); ", id="generator"),
        pytest.param({"a": 1, "b": 2}, "returned dict; return a list", id="dict"),
        pytest.param(UserDict(a=1, b=2), "returned UserDict;", id="like a dict"),
        pytest.param("ab", "returned str;", id="str"),
        pytest.param(b"ab", "returned bytes;", id="bytes"),
        pytest.param({1, 2}, "returned set;", id="set"),
        pytest.param(None, "returned NoneType;", id="None"),
        pytest.param(3, "returned int;", id="number"),
        pytest.param(np.array(3), "returned ndarray;", id="0-d array"),
        pytest.param(np.float64(3), "returned float64;", id="scalar"),
        pytest.param(Tensor(ndim=0), "returned Tensor;", id="0-d tensor"),
        pytest.param(Frame(), "returned Frame;", id="data frame"),
    ],
)
def test_a_wrong_number_of_results_fails_the_call(returned: Any, message: str) -> None:
    """And is not tried again: nothing says that one item is guilty."""
    calls = []

    def infer(batch: list[int]) -> Any:
        calls.append(batch)
        return returned

    results = batch_infer(infer)([1, 2])
    assert statuses(results) == [500, 500]
    assert isinstance(results[0].exc, BatchSizeError)
    assert message in str(results[0].exc)
    assert len(calls) == 1


def test_a_generator_that_raises_is_split_like_a_function() -> None:
    def infer(batch: list[int]) -> Any:
        for item in batch:
            yield 1 / item

    assert statuses(batch_infer(infer)([1, 0, 2])) == [200, 500, 200]


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        pytest.param(ValueError("x"), 500, id="any"),
        pytest.param(NotFound(), 404, id="HTTPException"),
        pytest.param(SystemExit(), 500, id="BaseException"),
    ],
)
def test_an_exception_among_the_results_fails_its_item(exc: BaseException, status: int) -> None:
    results = batch_infer(lambda batch: [10, exc, 30])([1, 2, 3])
    assert statuses(results) == [200, status, 200]
