"""Measure a running service, or this framework beside others: ``python samples/bench.py --help``.

``load`` needs nothing but Python, and is faster with uvloop; ``compare`` needs a network the first
time. The parts are in ``benchmark/``.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmark import compare as comparing
from benchmark.http import Address, Unreadable, request_bytes
from benchmark.load import ask, reachable, run
from benchmark.peers import MODELS, PEERS, Peer
from benchmark.plan import Plan, Tally
from benchmark.report import check_plots, headline, machine, plot_latencies, summary, text
from benchmark.servers import default_cache

# Exit codes, as those of `python -m ventu_lite`.
DONE = 0
NO_ANSWER = 1
WRONG_USAGE = 2
CANNOT_CONNECT = 3

LONGEST_SHOWN = 500  # bytes of a body
NO_BODY = "it had no body: an inference is a POST and needs --body"

LOAD_EXAMPLES = """\
examples, with a service on port 8000:
  python samples/bench.py load http://127.0.0.1:8000/inference --body '{"text": "my cat"}'
  python samples/bench.py load http://127.0.0.1:8000/inference --body '{"text": "my cat"}' \\
      --type msgpack --rate 500 --seconds 30 --json load.json
  python samples/bench.py load http://127.0.0.1:8000/livez --clients 1 --seconds 3

One request is sent before all others: if its answer is no success, nothing is measured, unless
--errors says that errors are wanted.

In an open loop (--rate) requests leave when they are due, whether answers have come or not, and
their latency counts from then on: a service that stops for a second cannot hide it.
"""
COMPARE_EXAMPLES = """\
examples:
  python samples/bench.py compare --prepare
  python samples/bench.py compare --only ventu_lite mosec --clients 1,16,64 --seconds 5
  python samples/bench.py compare --model sleep --rounds 3 --markdown sleep.md --plot sleep.svg
"""
EXAMPLES = """\
examples:
  python samples/bench.py load http://127.0.0.1:8000/inference --body '{"text": "my cat"}'
  python samples/bench.py compare --only ventu_lite flask --clients 1,16
"""


def positive(value: str) -> float:
    """Return a number above 0 for argparse."""
    number = float(value)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{value!r} is not above 0")
    return number


def not_negative(value: str) -> float:
    """Return a number of at least 0 for argparse."""
    return 0.0 if float(value) == 0 else positive(value)


def whole(value: str) -> int:
    """Return a whole number above 0 for argparse."""
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not above 0")
    return number


def numbers(value: str) -> list[int]:
    """Return ``1,16,64`` as numbers, each once."""
    return list(dict.fromkeys(whole(part) for part in value.split(",")))


def header(value: str) -> tuple[str, str]:
    """Return ``Name: value`` as a pair."""
    name, colon, rest = value.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{value!r} is not 'Name: value'")
    return name.strip(), rest.strip()


def looks_like_a_file(body: str) -> bool:
    """Whether a name was meant and no text: JSON begins otherwise, or ends otherwise."""
    has_suffix = re.search(r"\.[a-z]\w{1,7}$", body, re.IGNORECASE)
    return not body.startswith(("{", "[", '"')) and ("/" in body or has_suffix is not None)


def body_bytes(body: str, kind: str) -> bytes:
    """Return what is sent: the file of that name, else the text itself.

    With ``kind`` msgpack a text and a ``.json`` file are packed, any other file goes as it is.

    Raises:
        ValueError: It can only be a file, and there is none; or it is to be packed and no JSON.
        ModuleNotFoundError: It is to be packed and msgpack is missing.
    """
    path = Path(body)
    is_file = os.path.isfile(body)  # which takes a text of any length
    if not is_file and looks_like_a_file(body):
        raise ValueError(f"no such file: {body}")
    data = path.read_bytes() if is_file else body.encode()
    if kind != "msgpack" or is_file and path.suffix != ".json":
        return data
    try:
        value = json.loads(data)
    except ValueError as exc:
        raise ValueError(f"--type msgpack packs JSON, and the body is none: {exc}") from exc
    if importlib.util.find_spec("msgpack") is None:
        raise ModuleNotFoundError("--type msgpack needs msgpack: python -m pip install msgpack")
    packed = importlib.import_module("msgpack").packb(value)
    assert isinstance(packed, bytes)
    return packed


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what ``load`` has to do.

    Raises:
        ValueError: An option makes no sense, with the others.
    """
    address = Address.of(options.url)
    body = b"" if options.body is None else body_bytes(options.body, options.type)
    method = options.method or ("GET" if options.body is None else "POST")
    kind = {} if options.body is None else {"Content-Type": f"application/{options.type}"}
    is_open = options.rate is not None
    clients = options.clients or (1000 if is_open else 64)
    if options.processes > clients:
        raise ValueError(f"{options.processes} processes for {clients} clients")
    return Plan(
        address,
        request_bytes(method, address, kind | dict(options.header), body),
        clients=clients,
        rate=options.rate,
        arrivals=options.arrivals,
        seconds=options.seconds,
        warm_up=options.warm_up,
        timeout=options.timeout,
        processes=options.processes,
        seed=options.seed,
    )


def show_progress(seconds: float, good: int, failed: int) -> None:
    """Write over the line on the terminal."""
    line = f"{seconds:5.1f} s  {good:,} answers, {failed:,} errors"
    print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)


def measured(plan: Plan) -> Tally:
    """Carry a plan out; show how far it is if somebody looks."""
    if not sys.stderr.isatty():
        return run(plan)
    try:
        return run(plan, show_progress)
    finally:
        print(f"\r{'':<70}\r", end="", file=sys.stderr, flush=True)


def check_first(plan: Plan, *, has_body: bool) -> None:
    """Send the request once.

    Raises:
        ValueError: The answer is no success, or there is none; nobody wants 10 s of that.
    """
    try:
        answer = ask(plan)
    except (OSError, Unreadable) as exc:
        said = f"the first request got no answer: {exc or type(exc).__name__}"
    else:
        if 200 <= answer.status < 300:
            return
        said = f"the first answer has status {answer.status}: {start_of(answer.body)}"
    advice = "see whether --body, --type and --header are right" if has_body else NO_BODY
    raise ValueError(f"{said}\n{advice}, or say --errors to measure errors")


def start_of(body: bytes) -> str:
    """Return what a terminal can show of a body, on one line."""
    text = " ".join(body[:LONGEST_SHOWN].decode(errors="replace").split())
    return "".join(character if character.isprintable() else "�" for character in text)


def load(options: argparse.Namespace) -> int:
    """Measure one service."""
    plan = plan_of(options)
    if options.plot is not None:
        check_plots()
    try:
        reached = reachable(plan.address)
    except OSError as exc:
        print(f"cannot connect to {options.url}: {exc}", file=sys.stderr)
        return CANNOT_CONNECT
    plan = replace(plan, address=reached)
    if not options.errors:
        check_first(plan, has_body=options.body is not None)
    print(headline(options.url, plan), flush=True)
    before = machine()
    tally = measured(plan)
    result = summary(plan, tally)
    print(text(plan, result))
    if options.json is not None:
        known = {"url": options.url, "command": command_line(), "machine": before}
        options.json.write_text(json.dumps(known | result.as_json(), indent=2) + "\n")
    if options.plot is not None:
        plot_latencies(options.plot, headline(options.url, plan), tally)
    return DONE if result.count else NO_ANSWER


def compare(options: argparse.Namespace) -> int:
    """Measure this framework and others."""
    if options.prepare:
        return prepare(options)
    peers = chosen(options)
    if options.plot is not None:
        check_plots()
    before = machine()
    wanted = comparing.Options(
        options.model,
        options.clients,
        options.seconds,
        options.warm_up,
        options.rounds,
        options.processes,
        options.cache,
    )
    reports = comparing.compare(peers, wanted, say)
    document = comparing.markdown(reports, wanted, command_line(), before)
    print(document)
    if options.markdown is not None:
        options.markdown.write_text(document)
    if options.json is not None:
        known = comparing.as_json(reports, wanted, command_line(), before)
        options.json.write_text(json.dumps(known, indent=2) + "\n")
    if options.plot is not None:
        comparing.plot(options.plot, reports, wanted)
    return DONE if any(report.rows for report in reports) else NO_ANSWER


def chosen(options: argparse.Namespace) -> list[Peer]:
    """Return the peers that are asked for, in the order of their definitions."""
    return [peer for name, peer in PEERS.items() if not options.only or name in options.only]


def prepare(options: argparse.Namespace) -> int:
    """Make the environments only."""
    _, reports = comparing.prepare(chosen(options), options.cache, say)
    for report in reports.values():
        print(f"{report.peer.title}: {report.version or report.failures[-1]}")
    return NO_ANSWER if any(report.failures for report in reports.values()) else DONE


def say(line: str) -> None:
    """Tell how far it is, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def command_line() -> str:
    """Return what was typed."""
    return shlex.join(["python", *sys.argv])


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        description="Measure a running service, or this framework beside others.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _add_load(
        commands.add_parser(
            "load", help="measure a running service", epilog=LOAD_EXAMPLES, formatter_class=raw
        )
    )
    _add_compare(
        commands.add_parser(
            "compare",
            help="measure this framework beside others",
            epilog=COMPARE_EXAMPLES,
            formatter_class=raw,
        )
    )
    return top


def _add_load(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    command.set_defaults(command=load)
    add("url", metavar="URL", help="an http URL")
    add("--body", metavar="FILE|TEXT", help="of every request, which is then a POST")
    add("--type", choices=["json", "msgpack"], default="json", help="of the body (json)")
    add("--header", type=header, action="append", default=[], metavar="'NAME: VALUE'")
    add("--method", help="if not GET without and POST with a body")
    add("--errors", action="store_true", help="measure even if the first answer is an error")
    add("--clients", type=whole, metavar="N", help="connections (64; with --rate at most 1000)")
    add("--rate", type=positive, metavar="N", help="requests per second: an open loop")
    add("--arrivals", choices=["poisson", "even"], default="poisson", help="with --rate (poisson)")
    add("--seconds", type=positive, default=10.0, metavar="S", help="to measure (10)")
    add("--warm-up", type=not_negative, default=1.0, metavar="S", help="before that (1)")
    add("--timeout", type=positive, default=30.0, metavar="S", help="of a request (30)")
    add("--processes", type=whole, default=1, metavar="N", help="of this tool (1)")
    add("--seed", type=int, default=1, metavar="N", help="of the random arrivals (1)")
    add("--json", type=Path, metavar="FILE", help="write the results for programs")
    add("--plot", type=Path, metavar="FILE", help="draw the latencies: .png or .svg")


def _add_compare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    command.set_defaults(command=compare)
    add("--only", nargs="+", choices=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    add("--clients", type=numbers, default=[1, 16, 64], metavar="N,N", help="(1,16,64)")
    add("--model", choices=list(MODELS), default="empty", help="(empty)")
    add("--seconds", type=positive, default=5.0, metavar="S", help="of each measurement (5)")
    add("--warm-up", type=not_negative, default=1.0, metavar="S", help="before that (1)")
    add("--rounds", type=whole, default=1, metavar="N", help="of all, the median counts (1)")
    add("--processes", type=whole, default=1, metavar="N", help="of this tool (1)")
    cache = default_cache()
    add("--cache", type=Path, default=cache, metavar="DIR", help=f"of environments ({cache})")
    add("--prepare", action="store_true", help="make the environments and stop")
    add("--markdown", type=Path, metavar="FILE", help="write what is printed")
    add("--json", type=Path, metavar="FILE", help="write the results for programs")
    add("--plot", type=Path, metavar="FILE", help="draw requests/s by clients: .png or .svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parser().parse_args(arguments)
    try:
        code = options.command(options)
    except KeyboardInterrupt:
        return NO_ANSWER  # before anything was measured
    except (ValueError, ModuleNotFoundError) as exc:
        print(f"{Path(sys.argv[0]).name}: {exc}", file=sys.stderr)
        return WRONG_USAGE
    assert isinstance(code, int)
    return code


if __name__ == "__main__":
    sys.exit(main())
