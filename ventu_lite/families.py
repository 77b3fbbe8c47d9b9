"""Metrics from several sources as one text: registries, a shared directory, plain numbers."""

import glob
import os
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Metric, multiprocess
from prometheus_client.exposition import choose_encoder
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY

from .room import give_back_room

# Held while the files of the shared directory are read, or put together.
_files: Final = threading.Lock()
#: Stands where a process id would, in the names of files with the totals of all that have ended.
_ENDED: Final = "ended"
_Value = tuple[float, float]  # and when it was set, 0 but for gauges of "mostrecent"
_Fold = Callable[[_Value, _Value], _Value]
_USED, _HEAD = struct.Struct("ii"), 8  # what a file begins with: how much of it holds something


def _sum(one: _Value, other: _Value) -> _Value:
    return one[0] + other[0], 0.0


def _latest(one: _Value, other: _Value) -> _Value:
    return max(one, other, key=itemgetter(1))


#: How the values of two processes become one, by kind of file, as ``MultiProcessCollector`` does it
#: for those that live; all others are sums. ``mark_process_dead`` removes those of "live" gauges.
_FOLDS: Final[dict[str, _Fold]] = {
    "gauge_min": min,
    "gauge_max": max,
    "gauge_mostrecent": _latest,
}
_OF_ONE: Final = "gauge_all"  # the default of ``Gauge``: each process shows its own


class Collector(Protocol):
    """What has metrics."""

    def collect(self) -> Iterable[Metric]:
        """Return the families as they are now."""


class Families:
    """Families that were collected before, in another thread perhaps."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._families


class Together:
    """Several collectors as one: each family once, each sample once, the first one counts.

    So a batching service, which comes first, may count what its workers count, too: rejections.

    Args:
        collectors: The sources.
        names: Families or samples to show; all if there are none.
    """

    def __init__(self, collectors: Iterable[Collector], names: Sequence[str] = ()) -> None:
        self._collectors = collectors
        self._names = frozenset(names)

    def collect(self) -> Iterable[Metric]:
        """Return the merged families that have samples."""
        families: dict[str, Metric] = {}
        for collector in self._collectors:
            for family in collector.collect():
                known = families.get(family.name)
                families[family.name] = _merged(known, family) if known else family
        return [family for family in map(self._restricted, families.values()) if family.samples]

    def _restricted(self, family: Metric) -> Metric:
        if not self._names or family.name in self._names:
            return family
        kept = Metric(family.name, family.documentation, family.type)
        kept.samples = [sample for sample in family.samples if sample.name in self._names]
        return kept


def expose(
    collectors: Iterable[Collector], accept: str, names: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Return the text of some collectors and its content type.

    Args:
        collectors: The sources.
        accept: The ``Accept`` header: OpenMetrics if it is asked for, else Prometheus text.
        names: Families or samples to show; all if there are none.
    """
    try:
        encode, content_type = choose_encoder(accept)
    except TypeError:  # it compares versions that are no numbers
        encode, content_type = choose_encoder("")
    return encode(Together(collectors, names)), content_type


def is_shared() -> bool:
    """Whether several processes write into one directory."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def process_collectors() -> list[Collector]:
    """Return the default registry, or all that processes have written into their directory."""
    if not is_shared():
        return [REGISTRY]
    return [_Shared()]


class _Shared:
    """What all processes have written into their directory."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]  # it is not typed

    def collect(self) -> Iterable[Metric]:
        """Return all families."""
        with _files:
            return list(self._registry.collect())


def forget_process(pid: int, was_ready: bool) -> None:
    """Take a process that has ended out of the shared directory.

    Its totals go to those of all that have ended before, or the sums would go back. One that was
    never ready has none, and a gauge that each process shows for itself goes with its process.
    Waits for whoever reads the files: not for the thread of an event loop.
    """
    if not is_shared():
        return
    with _files:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it is not typed
        directory = glob.escape(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        for path in glob.glob(os.path.join(directory, f"*_{pid}.db")):
            kind = os.path.basename(path).removesuffix(f"_{pid}.db")
            if not was_ready or kind == _OF_ONE or os.path.getsize(path) <= _HEAD:
                os.unlink(path)
                continue
            give_back_room(path)  # so that there is some for the sum
            ended = path.removesuffix(f"{pid}.db") + f"{_ENDED}.db"
            _add_to_ended(path, ended, _FOLDS.get(kind, _sum))


def _add_to_ended(path: str, ended: str, fold: _Fold) -> None:
    """Put what is in a file into that of all processes that have ended; see ``MmapedDict``."""
    totals: dict[str, _Value] = {}
    for source in filter(os.path.exists, (ended, path)):
        for key, value, at, _ in MmapedDict.read_all_values_from_file(source):  # type: ignore[no-untyped-call]
            totals[key] = fold(totals[key], (value, at)) if key in totals else (value, at)
    body = b"".join(map(_entry, totals.keys(), totals.values()))
    try:
        with open(f"{ended}.new", "wb") as file:
            file.write(_USED.pack(_HEAD + len(body), 0) + body)
    except OSError:  # no room: it goes on to stand in a file of its own
        os.unlink(f"{ended}.new")
        return
    os.replace(f"{ended}.new", ended)
    os.unlink(path)


def _entry(key: str, value: _Value) -> bytes:
    name = key.encode()
    padded = name + b" " * (8 - (len(name) + 4) % 8)
    return struct.pack(f"i{len(padded)}sdd", len(name), padded, *value)


def _merged(one: Metric, other: Metric) -> Metric:
    """Return a new family with the samples of both, each once."""
    merged = Metric(one.name, one.documentation, one.type)
    samples = {(s.name, *sorted(s.labels.items())): s for s in [*other.samples, *one.samples]}
    merged.samples = list(samples.values())
    return merged
