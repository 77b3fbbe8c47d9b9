"""What the fuzzers share: instrumented imports, seeds, and where a failing input is kept.

libFuzzer, which atheris drives, mutates the inputs that it knows and keeps those that reach new
branches. Inputs of a target ``http`` are

* ``seeds/http.txt``, written by hand, and ``corpus/http.txt``, found by fuzzing and minimised: one
  bytes literal in each line,
* ``found/http-*``, all that ever failed.

Where a run ends the next one goes on: its inputs stay in ``build/fuzz``. Those worth keeping get
into the repository by

    mkdir build/best
    tests/fuzz/fuzz_http.py -merge=1 build/best
    python tests/fuzz/fuzzing.py http build/best
"""

import ast
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
WORK = HERE.parent.parent / "build" / "fuzz"

Check = Callable[[bytes], None]


def known(target: str) -> dict[str, bytes]:
    """Return the inputs that are kept for a target, by a name for each."""
    inputs = {path.name: path.read_bytes() for path in sorted(HERE.glob(f"found/{target}-*"))}
    for path in (HERE / "seeds" / f"{target}.txt", HERE / "corpus" / f"{target}.txt"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("b"):
                inputs[f"{path.parent.name}-{number}"] = ast.literal_eval(line)
    return inputs


def loud(check: Check) -> Check:
    """Return ``check`` so that it shows the input that fails: libFuzzer shows only short ones."""

    def shown(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            traceback.print_exc()
            print(f"\nfailing input: {data!r}", file=sys.stderr, flush=True)
            raise

    return shown


def main(target: str) -> None:
    """Fuzz until something fails or the options say that it is enough.

    Options are those of libFuzzer, such as ``-max_total_time=30``.
    """
    import atheris  # its wheels are for Linux alone; whoever wants the inputs needs none

    with atheris.instrument_imports(include=["ventu_lite", "h11"]):
        check = importlib.import_module(f"check_{target}").check
    work = WORK / target
    work.mkdir(parents=True, exist_ok=True)
    for name, data in known(target).items():
        (work / name).write_bytes(data)
    options = [
        f"-dict={HERE / 'seeds' / target}.dict",
        f"-artifact_prefix={HERE / 'found' / target}-",
        "-timeout=30",
        "-rss_limit_mb=4096",  # tracemalloc grows by a kilobyte with each start
    ]
    atheris.Setup([sys.argv[0], *options, *sys.argv[1:], str(work)], loud(check))
    atheris.Fuzz()  # ends the process


def keep(target: str, directory: Path) -> None:
    """Make the inputs in a directory the corpus of a target, beside its seeds."""
    corpus = HERE / "corpus" / f"{target}.txt"
    corpus.write_text("")
    best = {path.read_bytes() for path in directory.iterdir()} - {*known(target).values()}
    lines = [f"{data!r}\n" for data in sorted(best, key=lambda data: (len(data), data))]
    corpus.write_text("".join(lines))


if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]))
