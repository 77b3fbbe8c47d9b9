"""The end of a process: at once, when all that was promised is done."""

import atexit
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quick_exit() -> Iterator[None]:
    """End the process, some time after the block, without taking Python down piece by piece.

    Python would look through all objects once more. Those of torch take it seconds, and libraries
    of C++ complain, or crash, in an order of their ends that nobody has tried. Threads that are no
    daemons are waited for, and what was registered with ``atexit`` within the block runs, as ever.
    """
    code = 1  # of an exception that nobody catches

    def end() -> None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or nobody reads any more
                stream.flush()
        os._exit(code)

    atexit.register(end)
    try:
        yield
        code = 0
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        raise
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
        raise
