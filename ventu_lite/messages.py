"""The bodies of frames: events ⇄ msgpack. What a message may hold, whoever sends it and whenever.

A body is one flat map of byte strings. On the way in, ``unpack_entries`` makes that map and a
``read_…`` function an event of it; on the way out a ``pack_…`` function returns the body. Jobs are
keyed by their ids. Two keys are no jobs: ``error_ids`` holds the ids of rejected jobs without a
separator, ``ventu_lite`` the additions of our own that other programs ignore, a map itself.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from .errors import ProtocolError, VentuError
from .events import Batch, Bye, Challenge, Results
from .maps import pack_map, unpack_additions

ID_SIZE = 36  # characters of a job id; ``error_ids`` can be split only because all are equal
JOB_OVERHEAD = 43  # bytes that a job adds to a message besides its payload: 38 id, up to 5 length
MESSAGE_OVERHEAD = 5  # the longest header of a map
CHALLENGE_SIZE = 32  # bytes; as long as the digest, so guessing one is no easier than the other

# One batch is one call of a model. No model takes so many items, and an attacker who may make
# dictionaries of any size turns one message into many times its size in memory.
MAX_JOBS = 65_536

_DEFAULT_REJECTION = 422  # the only one that kemingy/batching knows


class MessageTooLarge(VentuError):
    """A message to send is larger than the peer would read; nothing has changed, send another."""


def pack_batch(batch: Batch) -> bytes:
    """Return the body of a batch. The ids are trusted: whoever calls this has made them.

    Raises:
        ValueError: No job, or too many.
    """
    if not 1 <= len(batch.payloads) <= MAX_JOBS:
        raise ValueError(f"batch of {len(batch.payloads)} jobs, expected 1 to {MAX_JOBS}")
    return pack_map(batch.payloads)


def pack_results(results: Results) -> bytes:
    """Return the body of results.

    Raises:
        ValueError: No job, a rejected one without a body, or a status or duration that the peer
            would refuse.
    """
    if not results.payloads:  # with bye set it would read as a bye that crossed
        raise ValueError("results of 0 jobs, expected at least 1")
    entries: dict[str, bytes | str] = {**results.payloads}
    if results.rejected:
        _check_rejected(results)
        entries["error_ids"] = "".join(results.rejected)
    if additions := _additions(results):
        entries["ventu_lite"] = pack_map(additions)
    return pack_map(entries)


def pack_addition(key: str, value: bytes | bool) -> bytes:
    """Return the body of a message that holds one addition and no job: challenge, proof, bye."""
    return pack_map({"ventu_lite": pack_map({key: value})})


def read_batch(entries: dict[str, bytes]) -> Batch:
    """Return the batch that a message of the batching service holds.

    Raises:
        ProtocolError: No job, or an id that is not 36 ASCII characters, or would tear a log.
    """
    if not entries:
        raise ProtocolError("batch of 0 jobs, expected at least 1")
    ids = "".join(entries)
    if set(map(len, entries)) != {ID_SIZE} or not (ids.isascii() and ids.isprintable()):
        raise ProtocolError(f"job id that is not {ID_SIZE} printable ASCII characters")
    return Batch(entries)


def read_results(entries: dict[str, bytes]) -> Results | Bye:
    """Return what a message of the worker says; ``entries`` become the payloads.

    Raises:
        ProtocolError: The parts of the message contradict each other, or one is not as it must be.
    """
    error_ids = entries.pop("error_ids", b"")
    packed = entries.pop("ventu_lite", None)
    additions = {} if packed is None else unpack_additions(packed, len(entries))
    bye = additions.get("bye", False)
    if not isinstance(bye, bool):
        raise ProtocolError(f"bye of type {type(bye).__name__}, expected true or false")
    if bye and not entries and not error_ids:
        return Bye()
    infer = additions.get("infer")
    if infer is not None and not _is_duration(infer):
        raise ProtocolError("infer is not a number of seconds")
    rejected = {}
    if error_ids or "status" in additions:
        rejected = _read_rejected(error_ids, additions.get("status", {}), entries)
    return Results(entries, rejected, None if infer is None else float(infer), bye)


def read_challenge(entries: dict[str, bytes]) -> Challenge:
    """Return the challenge that a message of the batching service holds.

    Raises:
        ProtocolError: It does not hold one alone, or one of another size.
    """
    nonce = _only_addition(entries, "challenge")
    if len(nonce) != CHALLENGE_SIZE:
        raise ProtocolError(f"challenge of {len(nonce)} bytes, expected {CHALLENGE_SIZE}")
    return Challenge(nonce)


def read_proof(entries: dict[str, bytes]) -> bytes:
    """Return the proof that a message of the worker holds.

    Raises:
        ProtocolError: It does not hold one alone.
    """
    return _only_addition(entries, "proof")


def reject_largest(
    results: Results, max_message: int, error_body: Callable[[str], bytes]
) -> Results:
    """Return results that fit into a message, with 500 instead of the largest ones.

    The others must not suffer for one response that nobody could read.

    Args:
        results: What does not fit.
        max_message: The largest message that the peer reads, in bytes.
        error_body: Returns the body for a job, by its id. Should not even these fit, then some
            are left empty.
    """
    per_job = JOB_OVERHEAD + ID_SIZE + 41  # its own entry, its share of error_ids and of status
    payloads, rejected = dict(results.payloads), dict(results.rejected)
    size = 1024 + sum(map(len, payloads.values())) + per_job * len(payloads)
    for make in (error_body, lambda id: b""):
        for id in sorted(payloads, key=lambda id: len(payloads[id]), reverse=True):
            if size <= max_message:
                break
            body = make(id)
            if len(body) < len(payloads[id]):
                size -= len(payloads[id]) - len(body)
                payloads[id], rejected[id] = body, 500
    return replace(results, payloads=payloads, rejected=rejected)


def _check_rejected(results: Results) -> None:
    if strange := results.rejected.keys() - results.payloads.keys():
        raise ValueError(f"{len(strange)} rejected jobs without an error body")
    for status in results.rejected.values():
        if not _is_status(status):
            raise ValueError(f"status {status!r}, expected an integer from 400 to 599")


def _additions(results: Results) -> dict[str, object]:
    """Return the map under ``ventu_lite``, with only the keys that say something."""
    additions: dict[str, object] = {}
    if status := {id: n for id, n in results.rejected.items() if n != _DEFAULT_REJECTION}:
        additions["status"] = status
    if results.infer is not None:
        if not _is_duration(results.infer):
            raise ValueError(f"infer {results.infer!r}, expected seconds")
        additions["infer"] = results.infer
    if results.bye:
        additions["bye"] = True
    return additions


def _only_addition(entries: dict[str, bytes], key: str) -> bytes:
    """Return the value of ``{"ventu_lite": {key: value}}``, the shape of challenge and proof."""
    packed = entries.get("ventu_lite")
    value = None
    if packed is not None and len(entries) == 1:
        value = unpack_additions(packed, 0).get(key)
    if not isinstance(value, bytes):
        raise ProtocolError(f"expected a {key} and nothing else")
    return value


def _read_rejected(joined: bytes, status: Any, answered: Collection[str]) -> dict[str, int]:
    """Return the status of each rejected job, in the order of ``error_ids``."""
    if len(joined) % ID_SIZE:
        raise ProtocolError(f"error_ids of {len(joined)} bytes, expected a multiple of {ID_SIZE}")
    text = joined.decode("ascii", "surrogateescape")  # of the same length
    ids = [text[start : start + ID_SIZE] for start in range(0, len(text), ID_SIZE)]
    rejected = dict.fromkeys(ids, _DEFAULT_REJECTION)
    if len(rejected) < len(ids):
        raise ProtocolError(f"error_ids of {len(ids)} jobs, only {len(rejected)} different")
    if not all(id in answered for id in rejected):
        raise ProtocolError("error_ids of a job that has no error body")
    if not isinstance(status, dict) or not all(map(_is_status, status.values())):
        raise ProtocolError("status is not a map of integers from 400 to 599")
    if not status.keys() <= rejected.keys():
        raise ProtocolError("status of a job that is not in error_ids")
    return rejected | status


def _is_status(value: object) -> bool:
    return isinstance(value, int) and 400 <= value <= 599


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < math.inf
