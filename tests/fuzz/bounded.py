"""A bound on the memory that a few bytes may take."""

import contextlib
import tracemalloc
from collections.abc import Iterator


@contextlib.contextmanager
def memory_at_most(size: int) -> Iterator[None]:
    """Raise if Python has taken more than ``size`` bytes at any time in this block."""
    tracemalloc.start()  # takes a kilobyte for ever, but to trace all the time is 20 times slower
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= size, f"{peak} bytes of memory, expected at most {size}"
