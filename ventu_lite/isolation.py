"""Call the model so that a bad item harms no other: items in, results or ``Rejected`` out.

A batch function that raises is called again with halves of the batch, until the guilty items
stand alone. With *g* guilty items among *n* that takes about ``2 g log2(n / g)`` calls, and
never more than ``2 n - 1``. Items are made anew for that: a function that changes them in place,
and then raises, would else give wrong answers to the innocent.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from typing import Any

from .errors import BatchFailed, BatchSizeError, VentuError
from .outcomes import Rejected, count_rejected

#: Takes the name and place of a function, a number of items, and what it raised for so many
#: together, but for none of them in a smaller batch: no answer shows that.
OnBlameless = Callable[[str, int, BaseException], None]

#: Makes the item at a place anew, or a ``Rejected``.
Again = Callable[[int], Any]

# What has a length and can be counted through, but is no list of results.
_NOT_RESULTS = (Mapping, Set, str, bytes, bytearray)


class SingleInfer:
    """Call a function of one item for each of many."""

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        self._fn = fn

    def __call__(self, items: Sequence[Any], again: Again) -> list[Any]:
        """Return a result or a ``Rejected`` for each item, in the same order.

        Args:
            items: What the function gets, one after the other.
            again: Not needed, as nothing is called twice for an item.
        """
        return [self._one(item) for item in items]

    def _one(self, item: Any) -> Any:
        try:
            return self._fn(item)
        except KeyboardInterrupt:
            raise
        except BaseException as exc:  # sys.exit() in a model must not take the others along
            return Rejected.of(exc)


class BatchInfer:
    """Call a function of many items, split by key and size, and again in halves if it raises.

    Not for several threads at once: the function is the user's and may not be safe for them.

    Args:
        fn: ``n`` items in, ``n`` results out, in the same order. A result that is an exception
            instance counts as raised for its item.
        max_batch_size: More items are split before the call; ``None`` for no ceiling.
        isolate: Split when it raises.
        key: Items of different keys never share a call.
        timeout: Seconds after which it stops calling again, counted from the start; every item
            has been in one call by then.
        clock: Monotonic seconds.
        where: The name and place of the function, for messages.
        on_blameless: Called when it raised, but no item is to blame.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        *,
        max_batch_size: int | None = None,
        isolate: bool = True,
        key: Callable[[Any], Hashable] | None = None,
        timeout: float,
        clock: Callable[[], float],
        where: str = "infer",
        on_blameless: OnBlameless,
    ) -> None:
        self._fn = fn
        self._where = where
        self._on_blameless = on_blameless
        self._max_batch_size = max_batch_size
        self._isolate = isolate
        self._key = key
        self._timeout = timeout
        self._clock = clock

    def __call__(self, items: Sequence[Any], again: Again) -> list[Any]:
        """Return a result or a ``Rejected`` for each item, in the same order.

        Args:
            items: What the function gets.
            again: Makes the items of every further call.
        """
        give_up_at = self._clock() + self._timeout
        if self._key is None:
            return self._chunks(items, again, give_up_at)
        results: list[Any] = [None] * len(items)
        for places in self._groups(self._key, items, results).values():
            part = [items[place] for place in places]
            answers = self._chunks(part, at(places, again), give_up_at)
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
        return results

    def _groups(
        self, key: Callable[[Any], Hashable], items: Sequence[Any], results: list[Any]
    ) -> dict[Hashable, list[int]]:
        """Return the places of each key; an item whose key cannot be told is rejected."""
        groups: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            try:
                groups.setdefault(key(item), []).append(place)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # sys.exit() in a key must not take the others along
                results[place] = Rejected.of(exc)
        return groups

    def _chunks(self, items: Sequence[Any], again: Again, give_up_at: float) -> list[Any]:
        size = self._max_batch_size
        if size is None or len(items) <= size:
            return self._isolated(items, again, give_up_at)
        results: list[Any] = []
        for start in range(0, len(items), size):
            places = range(start, len(items))
            part = items[start : start + size]
            results += self._isolated(part, at(places, again), give_up_at)
        return results

    def _isolated(self, items: Sequence[Any], again: Again, give_up_at: float) -> list[Any]:
        """Call once for all; where that raises, again for the halves, down to single items.

        Depth first and in order, so that the results simply follow one another.
        """
        failure: BaseException | None = None
        results: list[Any] = []
        todo = [(0, len(items))] if items else []
        while todo:
            start, end = todo.pop()
            if failure is not None and self._clock() >= give_up_at:
                results += self._reject_unknown(len(items) - start, failure)
                break
            try:
                if failure is None:
                    results += self._call(items[start:end])
                else:
                    results += for_accepted([*map(again, range(start, end))], self._call)
            except BatchSizeError as exc:
                results += [Rejected.of(exc)] * (end - start)
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # sys.exit() in a model must not take the others along
                failure = exc
                if end - start == 1:
                    results.append(Rejected.of(exc))
                elif not self._isolate:
                    results += self._reject_unknown(end - start, exc)
                else:
                    middle = (start + end) // 2
                    todo += [(middle, end), (start, middle)]
        if failure is not None:
            self._tell_if_blameless(results, failure)
        return results

    def _reject_unknown(self, count: int, exc: BaseException) -> list[Rejected]:
        """Reject items of which nobody knows whether they were guilty.

        A status that was meant for one item must not become another's.
        """
        name = type(exc).__name__
        failure = BatchFailed(f"{self._where} raised {name} for one or more of {count} item(s)")
        failure.__cause__ = exc
        return [Rejected.of(failure)] * count

    def _tell_if_blameless(self, results: Sequence[Any], failure: BaseException) -> None:
        if not any(isinstance(result, Rejected) for result in results):
            self._on_blameless(self._where, len(results), failure)

    def _call(self, items: Sequence[Any]) -> list[Any]:
        """Call the function once and check that there is one result for each item.

        Raises:
            BatchSizeError: There are too many or too few, or it is no sequence at all.
            BaseException: Whatever the function raises.
        """
        returned = self._fn(list(items))
        if not _is_results(returned):
            raise self._wrong_size(items, f"{type(returned).__name__}")
        results = list(returned)
        if len(results) != len(items):
            raise self._wrong_size(items, f"{len(results)} result(s)")
        return [self._rejected(r) if isinstance(r, BaseException) else r for r in results]

    def _rejected(self, exc: BaseException) -> Rejected:
        """Return what becomes of an item whose result is an exception, which has no frame."""
        note, add_note = f"returned by {self._where}", getattr(exc, "add_note", None)
        if add_note and note not in getattr(exc, "__notes__", ()):  # it may be one for all items
            add_note(note)
        return Rejected.of(exc)

    def _wrong_size(self, items: Sequence[Any], returned: str) -> BatchSizeError:
        return BatchSizeError(
            f"{self._where} got {len(items)} item(s), returned {returned};"
            " return a list with one result for each item, in the same order"
        )


def hashable(key: Callable[[Any], Any], where: str) -> Callable[[Any], Hashable]:
    """Return a key function that raises a sentence where the user's returns what cannot be a key.

    Args:
        key: The user's.
        where: The name and place of the function whose option it is.
    """

    def checked(item: Any) -> Hashable:
        value: Hashable = key(item)
        try:
            hash(value)
        except TypeError:
            raise VentuError(
                f"key of {where} returned {type(value).__name__}, expected something hashable,"
                " such as a string or a tuple of numbers"
            ) from None
        return value

    return checked


def at(places: Sequence[int], again: Again) -> Again:
    """Return what makes the items anew that are at some places of a longer list."""
    return lambda number: again(places[number])


def for_accepted(
    items: Sequence[Any], call: Callable[[Sequence[Any]], Sequence[Any]]
) -> Sequence[Any]:
    """Call for those of the items that are no ``Rejected``, which stay at their places."""
    if not count_rejected(items):
        return call(items) if items else []
    accepted = [item for item in items if not isinstance(item, Rejected)]
    results = iter(call(accepted) if accepted else [])
    return [item if isinstance(item, Rejected) else next(results) for item in items]


def _is_results(returned: Any) -> bool:
    if isinstance(returned, _NOT_RESULTS) or getattr(returned, "ndim", 1) == 0:
        return False
    if hasattr(returned, "columns"):  # a DataFrame: counting through it gives column names
        return False
    return hasattr(returned, "__len__") or isinstance(returned, Iterator)
