"""How much memory does an idle worker of the sample hold, its model loaded?

Starts ``python -m ventu_lite worker`` with ``samples/sentiment.py``, waits until it is ready, and
reads its resident set from ``/proc``, so Linux only. Goal: at most 60 MB. Run it with
``python tests/benchmarks/worker_memory.py``.
"""

import re
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from measuring import python, verdict
from processes import SAMPLE, worker

GOAL = 60.0
BASE = "import flask, pydantic; print(open('/proc/self/status').read())"


def resident_megabytes(status: str) -> float:
    """Return the resident set in ``/proc/PID/status``, in MB of a million bytes."""
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main() -> None:
    """Measure and print."""
    print(f"import flask, pydantic: {resident_megabytes(python('-c', BASE)):.1f} MB")
    with worker(SAMPLE, "--unix", "nobody.socket") as process:
        process.wait_for("trying again")
        status = Path(f"/proc/{process.pid}/status").read_text()
    print(verdict("an idle worker", resident_megabytes(status), GOAL, " MB"))


if __name__ == "__main__":
    main()
