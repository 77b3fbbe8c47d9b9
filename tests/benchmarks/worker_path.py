"""How much CPU does one item cost in a worker whose model costs nothing?

Measures batches of 32 on their way bytes → validated → preprocess → infer → postprocess →
validated → bytes, metrics included; and the same with the wire protocol around it, from the bytes
of a batch message to the bytes of the results message. Goal: at most 6 µs for an item, JSON and
msgpack, without the wire protocol. Run it with ``python tests/benchmarks/worker_path.py``.
"""

import json
import uuid
from collections.abc import Callable

import msgpack
from measuring import in_turns, medians, small_service, verdict

from ventu_lite.batch_runner import BatchRunner
from ventu_lite.protocol import Batch, BatchingConnection, WorkerConnection
from ventu_lite.worker_process import answer

GOAL = 6.0
SIZE = 32
MAX_MESSAGE = 1 << 28
REQUEST = {"text": "my cat is very cute"}


def path_of(runner: BatchRunner, payload: bytes) -> Callable[[], object]:
    """Return a function that answers one batch."""
    batch = Batch({str(uuid.uuid4()): payload for _ in range(SIZE)})
    results = answer(runner, batch)
    assert not results.rejected and len(results.payloads) == SIZE
    return lambda: answer(runner, batch)


def wire_of(runner: BatchRunner, payload: bytes) -> Callable[[], object]:
    """Return a function that answers one batch from message to message."""
    batch = Batch({str(uuid.uuid4()): payload for _ in range(SIZE)})
    worker = WorkerConnection(max_message=MAX_MESSAGE)
    batching = BatchingConnection(max_message=MAX_MESSAGE)
    batching.receive_data(worker.send_ready())
    message = batching.send_batch(batch)

    def call() -> bytes:
        (event,) = worker.receive_data(message)
        assert isinstance(event, Batch)
        return worker.send_results(answer(runner, event))

    return call


def main() -> None:
    """Measure and print."""
    runtime = small_service("worker", batch=True).runtime
    runner = runtime.act_as_worker()
    runtime.startup.run()
    payloads = {"JSON": json.dumps(REQUEST).encode(), "msgpack": msgpack.packb(REQUEST)}
    calls = {f"{name}, the stages": path_of(runner, body) for name, body in payloads.items()}
    calls |= {f"{name}, with the wire": wire_of(runner, body) for name, body in payloads.items()}
    rounds = in_turns(list(calls.values()), times=200, rounds=25)
    items = dict(zip(calls, (s / SIZE * 1e6 for s in medians(rounds)), strict=True))
    for name, microseconds in items.items():
        print(f"{name:24} {microseconds:5.2f} µs of CPU for one item of {SIZE}")
    for name in payloads:
        print(verdict(name, items[f"{name}, the stages"], GOAL, " µs"))


if __name__ == "__main__":
    main()
