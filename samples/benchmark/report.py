"""What a measurement says: percentiles, warnings, text for people, JSON, plots.

Nothing here measures anything.
"""

import importlib
import importlib.util
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmark.plan import Plan, Tally

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
# Of a core, from which on the tool itself holds the service up.
FULL = 0.95
# Seconds by which one request of a hundred may be sent late in an open loop.
LATE = 0.005


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of all values do not exceed (nearest rank).

    Args:
        ordered: At least one value, the smallest first.
        share: More than 0, at most 1.
    """
    rank = math.ceil(share * len(ordered) - 1e-9)  # 0.999 * 1000 is 999.0000000000001 at times
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True)
class Summary:
    """What one measurement says; times in milliseconds.

    Attributes:
        rate: Good answers per second.
        count: Good answers to requests of the window.
        latency: By the names of ``SHARES`` and ``mean``; empty without answers.
        errors: Failed requests by what went wrong, the most frequent first.
        batches: Batches by size, and ``batch_mean`` over batches, not over requests.
        queue: As ``latency``, the time in the service's queue.
        busy: The share of a core that the busiest process of the tool used.
        starved: The share of the time that one of them was ready to run and had no core.
        warnings: Why the numbers may say less about the service than they seem to.
    """

    seconds: float
    rate: float
    count: int
    latency: dict[str, float]
    errors: dict[str, int]
    batches: dict[int, float]
    batch_mean: float | None
    queue: dict[str, float]
    busy: float
    starved: float
    warnings: list[str]

    @property
    def failed(self) -> int:
        """How many requests had no good answer."""
        return sum(self.errors.values())

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` can write."""
        return vars(self) | {"failed": self.failed}


def summary(plan: Plan, tally: Tally) -> Summary:
    """Return what a tally says."""
    seconds = tally.seconds or math.inf
    # Each job of a batch tells its size, so a batch of 16 is told of 16 times.
    batches = {size: count / size for size, count in sorted(tally.batches.items())}
    jobs = sum(tally.batches.values())
    return Summary(
        seconds=tally.seconds,
        rate=tally.in_window / seconds,
        count=len(tally.latencies),
        latency=milliseconds(tally.latencies),
        errors=dict(tally.errors.most_common()),
        batches=batches,
        batch_mean=jobs / sum(batches.values()) if jobs else None,
        queue=milliseconds(tally.queued),
        busy=max(tally.busy, default=0.0),
        starved=max(tally.starved, default=0.0),
        warnings=warnings(plan, tally),
    )


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return mean and percentiles; nothing of nothing."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    values = {name: percentile(ordered, share) for name, share in SHARES.items()}
    values["mean"] = math.fsum(ordered) / len(ordered)
    return {name: value * 1e3 for name, value in values.items()}


def warnings(plan: Plan, tally: Tally) -> list[str]:
    """Return why the numbers may be those of the tool rather than of the service."""
    found = []
    busy = max(tally.busy, default=0.0)
    both = max((a + b for a, b in zip(tally.busy, tally.starved, strict=True)), default=0.0)
    if busy >= FULL:
        found.append(f"this tool was the bottleneck: {busy:.0%} of a core; use more --processes")
    elif both >= FULL:
        found.append("this tool waited for a free core: the machine is too small or too busy")
    late = milliseconds(tally.late).get("p99", 0.0) / 1e3
    if late > LATE:
        found.append(f"this tool sent late: 1 request of 100 by {late * 1e3:.1f} ms or more")
    if tally.seconds < plan.seconds - 1e-6:
        found.append(f"ended early, after {tally.seconds:.1f} s")
    return found


def text(plan: Plan, result: Summary) -> str:
    """Return the lines for people."""
    lines = [
        f"{'requests/s':<12} {result.rate:,.1f} ({result.count:,} answers in {result.seconds:g} s)",
        f"{'latency ms':<12} {_times(result.latency)}",
        f"{'errors':<12} {_errors(result)}",
    ]
    if result.batch_mean is not None:
        sizes = "  ".join(f"{size}: {count:,.0f}" for size, count in _top(result.batches).items())
        lines.append(f"{'batch size':<12} mean {result.batch_mean:.1f}; most often {sizes}")
    if result.queue:
        lines.append(f"{'queue ms':<12} {_times(result.queue)}")
    many = f", in {plan.processes} processes" if plan.processes > 1 else ""
    lines.append(
        f"{'this tool':<12} {result.busy:.0%} of a core{many};"
        f" waited for one {result.starved:.0%} of the time"
    )
    return "\n".join(lines + [f"WARNING: {warning}" for warning in result.warnings])


def _times(times: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in times.items()) or "no answer"


def _errors(result: Summary) -> str:
    if not result.errors:
        return "none"
    share = result.failed / (result.failed + result.count)
    kinds = ", ".join(f"{count:,} × {kind}" for kind, count in result.errors.items())
    return f"{result.failed:,} ({share:.1%}): {kinds}"


def _top(batches: Mapping[int, float]) -> dict[int, float]:
    """Return the five most frequent sizes, the smallest first."""
    return dict(sorted(Counter(batches).most_common(5)))


def headline(url: str, plan: Plan) -> str:
    """Return what is done, in a line."""
    if plan.rate is None:
        load = f"{plan.clients} clients in a closed loop"
    else:
        load = f"{plan.rate:g} requests/s, {plan.arrivals}, on at most {plan.clients} connections"
    return f"{url}: {load}, {plan.seconds:g} s after {plan.warm_up:g} s of warm-up"


def machine() -> dict[str, Any]:
    """Return what somebody has to know to judge the numbers."""
    average = os.getloadavg()[0]
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_average": round(average, 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):  # macOS, and processors without a name
        done = subprocess.run(
            ["sh", "-c", "sysctl -n machdep.cpu.brand_string"], capture_output=True, text=True
        )
        return done.stdout.strip() or platform.machine()


def check_plots() -> None:
    """Make sure that plots can be drawn, before anything is measured.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("--plot needs matplotlib: python -m pip install matplotlib")


def axes(width: float, height: float, count: int = 1) -> tuple[Any, Any]:
    """Return a figure and its axes that need no screen."""
    importlib.import_module("matplotlib").use("agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, plots = pyplot.subplots(1, count, figsize=(width, height), layout="constrained")
    return figure, plots


def plot_latencies(path: Path, title: str, tally: Tally) -> None:
    """Draw which share of the requests took longer than how much."""
    figure, plot = axes(8, 4.5)
    ordered = sorted(tally.latencies)
    # From the median outwards; a point for each tenth of a decade is all that can be seen.
    shares = [1 - 10 ** (-step / 10) for step in range(3, 61) if 10 ** (step / 10) <= len(ordered)]
    xs = [1 / (1 - share) for share in shares]
    plot.plot(xs, [percentile(ordered, share) * 1e3 for share in shares], color="#1f77b4")
    plot.set_xscale("log")
    ticks = {2: "p50", 10: "p90", 100: "p99", 1000: "p99.9", 10_000: "p99.99", 100_000: "p99.999"}
    shown = {at: name for at, name in ticks.items() if at <= max(len(ordered), 10)}
    plot.set_xticks(list(shown), list(shown.values()))
    plot.minorticks_off()
    plot.set_ylim(bottom=0)
    plot.set_xlabel("share of the requests that were at least as fast")
    plot.set_ylabel("latency, ms")
    plot.set_title(title, fontsize=9)
    plot.grid(alpha=0.3)
    figure.savefig(path)
