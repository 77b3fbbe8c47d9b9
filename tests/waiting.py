"""Waiting in tests for what no event tells of, up to a time that only a failure uses up."""

import asyncio
import time
from collections.abc import Callable

# Generous: it only has to end a test that hangs, on a machine that is busy with others.
TIMEOUT = 60.0

_PAUSE, _TURN = 0.005, 0.001


def until(claim: Callable[[], object], *, pause: float = _PAUSE) -> None:
    """Wait until a claim holds.

    Args:
        claim: Called again and again.
        pause: Seconds between two calls, more for a claim that is costly.

    Raises:
        AssertionError: It does not hold in time.
    """
    deadline = time.monotonic() + TIMEOUT
    while not claim():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(pause)


async def turn_until(claim: Callable[[], object]) -> None:
    """Let the event loop turn until a claim holds.

    Raises:
        AssertionError: It does not hold in time.
    """
    deadline = time.monotonic() + TIMEOUT
    while not claim():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(_TURN)
