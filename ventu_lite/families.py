"""Metrics from several sources as one text: registries, a shared directory, plain numbers."""

import glob
import os
from collections.abc import Iterable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric, multiprocess
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import REGISTRY

from .room import give_back_room


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
    shared = CollectorRegistry()
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # it is not typed
    return [shared]


def forget_process(pid: int, was_ready: bool) -> None:
    """Take the gauges of a process that has ended out of the shared directory.

    Its totals stay, or the sums would go back. One that was never ready has none, and a worker
    that cannot start, started again and again, must not fill the disk.
    """
    if not is_shared():
        return
    multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]  # it is not typed
    directory = glob.escape(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    for path in glob.glob(os.path.join(directory, f"*_{pid}.db")):
        if was_ready:
            give_back_room(path)
        else:
            os.unlink(path)


def _merged(one: Metric, other: Metric) -> Metric:
    """Return a new family with the samples of both, each once."""
    merged = Metric(one.name, one.documentation, one.type)
    samples = {(s.name, *sorted(s.labels.items())): s for s in [*other.samples, *one.samples]}
    merged.samples = list(samples.values())
    return merged
