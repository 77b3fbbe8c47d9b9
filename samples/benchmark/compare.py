"""Measure servers one after the other, the same model under the same load, and tabulate.

What cannot be installed, does not start or answers wrongly stands in the table as such.
"""

import contextlib
import string
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.http import Address, request_bytes
from benchmark.load import run
from benchmark.peers import TEXT, WORDS, Peer
from benchmark.plan import Plan
from benchmark.report import Summary, axes, summary
from benchmark.servers import (
    NotMeasured,
    Running,
    Say,
    check,
    cpu_seconds,
    environment,
    running,
    version_of,
)


@dataclass(frozen=True)
class Row:
    """One measurement of one server.

    Attributes:
        variant: The label of what was tried.
        result: What was measured.
        cpu: CPU time of all processes of the server per request, in µs, where the system tells.
    """

    variant: str
    result: Summary
    cpu: float | None


@dataclass
class Report:
    """What is known of one server.

    Attributes:
        peer: Which.
        version: Of its package.
        rows: By number of clients, the best variant only.
        failures: Why it, or a variant of it, could not be measured.
    """

    peer: Peer
    version: str = ""
    rows: dict[int, Row] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """What to measure; see ``bench.py compare --help``."""

    model: str
    clients: Sequence[int]
    seconds: float
    warm_up: float
    rounds: int
    processes: int
    cache: Path


def measure(server: Running, clients: int, options: Options) -> Row:
    """Return one measurement of a server that runs; ``variant`` is empty.

    Raises:
        NotMeasured: It ended meanwhile.
    """
    address = Address.of(f"http://127.0.0.1:{server.port}/inference")
    body = string.Template(server.peer.payload).substitute(text=TEXT).encode()
    plan = Plan(
        address,
        request_bytes("POST", address, {"Content-Type": "application/json"}, body),
        expected=server.ask(TEXT),
        clients=clients,
        seconds=options.seconds,
        warm_up=options.warm_up,
        processes=min(options.processes, clients),
    )
    before = cpu_seconds(server.mark)
    tally = run(plan)
    result = summary(plan, tally)
    used = cpu_seconds(server.mark) - before
    if server.process.poll() is not None:
        raise server.died()
    if tally.was_stopped:
        raise KeyboardInterrupt  # the load generator has taken it for itself
    # The CPU time is that of the warm-up as well, so the answers of it belong to it, too.
    answers = result.rate * (options.seconds + options.warm_up)
    return Row("", result, used / answers * 1e6 if used and answers else None)


def best(rows: Mapping[str, Sequence[Row]]) -> Row:
    """Return the median measurement of the variant whose median has the highest rate."""
    medians = []
    for variant, measured in rows.items():
        ordered = sorted(measured, key=lambda row: row.result.rate)
        middle = ordered[(len(ordered) - 1) // 2]
        medians.append(Row(variant, middle.result, middle.cpu))
    return max(medians, key=lambda row: row.result.rate)


def prepare(
    peers: Sequence[Peer], cache: Path, say: Say
) -> tuple[dict[str, Path], dict[str, Report]]:
    """Return the Python of each peer that can be installed, and a report for each peer."""
    pythons: dict[str, Path] = {}
    reports = {peer.name: Report(peer) for peer in peers}
    for peer in peers:
        try:
            pythons[peer.name] = environment(cache, peer, say)
            reports[peer.name].version = version_of(pythons[peer.name], peer)
        except NotMeasured as exc:
            reports[peer.name].failures.append(str(exc))
            say(f"{peer.title}: {exc}")
    return pythons, reports


def compare(peers: Sequence[Peer], options: Options, say: Say) -> list[Report]:
    """Measure all peers, in turns, and return what is known of them, in the same order.

    Ctrl-C ends it early: what has been measured until then is returned.
    """
    pythons, reports = prepare(peers, options.cache, say)
    rows: dict[tuple[str, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.suppress(KeyboardInterrupt):
        for peer in [peer for peer in peers if peer.name in pythons] * options.rounds:
            for variant in peer.variants[options.model]:
                for clients, row in _visit(
                    peer, variant, pythons[peer.name], options, reports[peer.name].failures, say
                ):
                    rows[peer.name, clients][variant].append(row)
    for (name, clients), found in rows.items():
        reports[name].rows[clients] = best(found)
    return list(reports.values())


def _visit(
    peer: Peer, variant: str, python: Path, options: Options, failures: list[str], say: Say
) -> Iterator[tuple[int, Row]]:
    """Start one variant of a peer and yield a measurement for each number of clients."""
    label = f"{peer.title}, {variant}" if variant else peer.title
    try:
        with running(peer, options.model, variant, python) as server:
            check(server)
            for clients in options.clients:
                row = measure(server, clients, options)
                yield clients, row  # before it is said: who reads that may press Ctrl-C
                say(f"{label}, {clients} clients: {row.result.rate:,.0f} requests/s")
    except NotMeasured as exc:
        failures.append(f"{variant}: {exc}" if variant else str(exc))
        say(f"{label}: {exc}")


def markdown(
    reports: Sequence[Report], options: Options, command: str, machine: Mapping[str, Any]
) -> str:
    """Return the whole document."""
    lines = [
        "# One model behind several servers",
        "",
        f"A model that {WORDS[options.model]}. Each client sends its next request when it has its"
        f" answer: {options.seconds:g} s after {options.warm_up:g} s of warm-up,"
        f" {_rounds(options.rounds)}, one model process each, batches of at most 32. Every answer"
        " is compared with the right one. Of the settings tried, the best counts for each number"
        " of clients.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB;"
        f" {machine['system']}; {machine['python']}; {machine['date']};"
        f" load average before: {machine['load_average']}",
        "",
        f"    {command}",
        "",
        *_peers_table(reports, options.model),
    ]
    for clients in options.clients:
        lines += ["", f"## {clients} client{'s' * (clients > 1)}", "", *_table(reports, clients)]
    return "\n".join([*lines, *_notes(reports), ""])


def _rounds(rounds: int) -> str:
    return "once" if rounds == 1 else f"the median of {rounds} rounds"


def _peers_table(reports: Sequence[Report], model: str) -> Iterator[str]:
    yield "| server | version | batching | validation | settings | tried |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for report in reports:
        peer = report.peer
        tried = ", ".join(filter(None, peer.variants[model])) or "–"
        cells = (peer.title, report.version or "–", peer.batching, peer.validation, peer.settings)
        yield f"| {' | '.join(map(_cell, cells))} | {tried} |"


def _table(reports: Sequence[Report], clients: int) -> Iterator[str]:
    yield "| server | requests/s | p50 ms | p99 ms | mean batch | CPU µs/request | errors | best |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
    for report in reports:
        row = report.rows.get(clients)
        if row is None:
            reason = report.failures[-1] if report.failures else "was not run"
            yield f"| {report.peer.title} | not measured: {_cell(reason)} | | | | | | |"
            continue
        yield f"| {report.peer.title} | {' | '.join(_figures(row))} |"


def _figures(row: Row) -> Iterator[str]:
    result = row.result
    yield f"{result.rate:,.0f}{' (!)' * bool(result.warnings)}"
    for name in ("p50", "p99"):
        yield f"{result.latency[name]:.2f}" if result.latency else "–"
    yield f"{result.batch_mean:.1f}" if result.batch_mean else ""
    yield f"{row.cpu:,.0f}" if row.cpu is not None else ""
    yield _cell(", ".join(f"{count} × {kind}" for kind, count in result.errors.items()) or "none")
    yield row.variant


def _cell(value: str) -> str:
    """Return a text that cannot end its cell."""
    return " ".join(value.replace("|", r"\|").split())


def _notes(reports: Sequence[Report]) -> Iterator[str]:
    notes = [
        f"- {report.peer.title}: {failure}" for report in reports for failure in report.failures
    ]
    for report in reports:
        for clients, row in report.rows.items():
            notes += [
                f"- (!) {report.peer.title}, {clients} clients: {warning}"
                for warning in row.result.warnings
            ]
    if notes:
        yield from ("", "Notes:", "")
        yield from (" ".join(note.split()) for note in notes)


def as_json(
    reports: Sequence[Report], options: Options, command: str, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that was measured, for programs."""
    return {
        "command": command,
        "machine": dict(machine),
        "options": {**vars(options), "cache": str(options.cache)},
        "servers": [
            {
                "name": report.peer.name,
                "version": report.version,
                "failures": report.failures,
                "clients": {
                    str(clients): {"variant": row.variant, "cpu_us": row.cpu} | row.result.as_json()
                    for clients, row in report.rows.items()
                },
            }
            for report in reports
        ],
    }


def plot(path: Path, reports: Sequence[Report], options: Options) -> None:
    """Draw requests/s by clients, a line for each server that was measured."""
    figure, chart = axes(8, 4.5)
    places = {clients: place for place, clients in enumerate(options.clients)}
    for report in reports:
        if report.rows:
            xs = [places[clients] for clients in report.rows]
            rates = [row.result.rate for row in report.rows.values()]
            is_ours = report.peer.name.startswith("ventu_lite")
            chart.plot(xs, rates, "o-", label=report.peer.title, linewidth=2.5 if is_ours else 1.2)
    chart.set_xticks(list(places.values()), [str(clients) for clients in places])
    chart.set_ylim(bottom=0)
    chart.set_xlabel("clients")
    chart.set_ylabel("requests/s")
    chart.set_title(f"A model that {WORDS[options.model]}", fontsize=10)
    chart.grid(alpha=0.3)
    chart.legend(fontsize=8)
    figure.savefig(path)
