"""The servers that ``bench.py compare`` runs, each as its own documents say it is fast.

Definitions only. Every program answers ``POST`` of a text with its length, so that an answer that
went to the wrong client is seen. ``$`` marks what is filled in before it runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_BATCH_SIZE = 32
TEXT = "my cat is very cute"
MODELS = {
    "empty": """
def model(texts):
    return [len(text) for text in texts]
""",
    # The lock is the accelerator: it can do one batch at a time, whoever asks.
    "sleep": """
import threading
import time

ACCELERATOR = threading.Lock()

def model(texts):
    with ACCELERATOR:
        time.sleep(0.005 + 0.0002 * len(texts))
    return [len(text) for text in texts]
""",
}
WORDS = {
    "empty": "returns at once",
    "sleep": "takes 5 ms and 0.2 ms for each item, one batch at a time",
}


@dataclass(frozen=True)
class Peer:
    """A server.

    Attributes:
        name: For ``--only``, and of its environment.
        title: How the tables call it.
        requirements: What pip installs; the first is the one whose version is shown.
        program: The file ``app.py``; the model is ``model`` in ``model.py`` beside it.
        command: What follows ``python``.
        batching: What its documents call what it does.
        validation: What it checks, in this program.
        settings: What was set because its documents recommend it.
        variants: Values to try, by a label; the best counts, for each number of clients.
        words: What else the program needs, by model.
        environment: Variables of its process.
        payload: The body of a request.
        answer: The body of the answer, as JSON; both with ``$`` for what is filled in.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    program: str
    command: tuple[str, ...]
    batching: str
    validation: str
    settings: str
    variants: Mapping[str, Mapping[str, Mapping[str, str]]]
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    payload: str = '{"text": "$text"}'
    answer: str = '{"length": $length}'


def _same(variants: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, Mapping[str, str]]]:
    """Return the same variants for every model."""
    return dict.fromkeys(MODELS, variants)


def _waits(unit: str, factor: float) -> dict[str, Mapping[str, Mapping[str, str]]]:
    """Return the waits for a batch that are worth a try.

    A model that returns at once leaves nothing to wait for; 10 ms is twice the time of the other.
    """
    tried = {"empty": (0, 1), "sleep": (0, 1, 2, 5, 10)}
    return {
        model: {f"wait {ms} ms": {unit: f"{ms * factor:g}"} for ms in waits}
        for model, waits in tried.items()
    }


_VENTU_LITE = """
from model import model
from pydantic import BaseModel, Field
from ventu_lite import Service

class Request(BaseModel):
    text: str = Field(min_length=2, examples=["my cat is very cute"])

class Response(BaseModel):
    length: int = Field(ge=0)

service = Service("bench")

@service.infer(batch=True, max_batch_size=32)
def infer(batch: list[Request]) -> list[Response]:
    return [Response(length=length) for length in model([request.text for request in batch])]

app = service.app
"""

_MOSEC = """
from model import model
from mosec import Server, Worker

class Model(Worker):
    def forward(self, data):
        return [{"length": length} for length in model([item["text"] for item in data])]

if __name__ == "__main__":
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=32, max_wait_time=$wait)
    server.run()
"""

_LITSERVE = """
import litserve
from model import model

class Api(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["text"]

    def predict(self, x):
        return model(x)

    def encode_response(self, output):
        return {"length": output}

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=$wait, api_path="/inference")
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True
    )
    server.run(host="127.0.0.1", port=$port, log_level="error", generate_client_file=False)
"""

_BENTOML = """
import bentoml
from model import model
from pydantic import BaseModel, Field

class Request(BaseModel):
    text: str = Field(min_length=2)

class Response(BaseModel):
    length: int = Field(ge=0)

@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Bench:
    @bentoml.api(batchable=True, max_batch_size=32, route="/inference")
    def infer(self, batch: list[Request]) -> list[Response]:
        return [Response(length=length) for length in model([item.text for item in batch])]
"""

_RAY = """
import asyncio
import signal
import threading

import ray
from model import model
from ray import serve
from starlette.requests import Request

@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
class Bench:
    @serve.batch(max_batch_size=32, batch_wait_timeout_s=$wait)
    async def infer(self, texts):
        return [{"length": length} for length in $call]

    async def __call__(self, request: Request):
        return await self.infer((await request.json())["text"])

if __name__ == "__main__":
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.set())
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20,
        _temp_dir="$folder/r",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": $port})
    serve.run(Bench.bind(), route_prefix="/inference")
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
"""

_FLASK = """
from flask import Flask, request
from model import model

app = Flask(__name__)

@app.post("/inference")
def infer():
    return {"length": model([request.get_json()["text"]])[0]}
"""

_FASTAPI = """
from fastapi import FastAPI
from model import model
from pydantic import BaseModel, Field

class Request(BaseModel):
    text: str = Field(min_length=2)

class Response(BaseModel):
    length: int = Field(ge=0)

app = FastAPI()

@app.post("/inference")
$define infer(request: Request) -> Response:
    return Response(length=model([request.text])[0])
"""

_GUNICORN = (
    *("-m", "gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", "$threads"),
    *("--bind", "127.0.0.1:$port", "app:app"),
)
_THREADS = {f"{count} threads": {"threads": str(count)} for count in (8, 32, 64)}

_ALL = [
    Peer(
        name="ventu_lite",
        title="ventu_lite serve",
        requirements=("ventu_lite",),
        program=_VENTU_LITE,
        command=(
            *("-m", "ventu_lite", "--app", "app.py", "serve", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", "$port", "--log-level", "warning"),
        ),
        batching="adaptive",
        validation="requests and answers",
        settings="`serve --workers 1`, defaults",
        variants=_same({"": {}}),
    ),
    Peer(
        name="ventu_lite-flask",
        title="ventu_lite, Flask",
        requirements=("ventu_lite", "gunicorn==27.0.1"),
        program=_VENTU_LITE,
        command=_GUNICORN,
        batching="adaptive",
        validation="requests and answers",
        settings="gunicorn with one worker of threads",
        variants=_same(_THREADS),
    ),
    Peer(
        name="mosec",
        title="mosec",
        requirements=("mosec==0.9.8",),
        program=_MOSEC,
        command=("app.py", "--address", "127.0.0.1", "--port", "$port", "--log-level", "error"),
        batching="a fixed wait",
        validation="none",
        settings="one worker process",
        variants=_waits("wait", 1),
    ),
    Peer(
        name="litserve",
        title="LitServe",
        requirements=("litserve==0.2.19",),
        program=_LITSERVE,
        command=("app.py",),
        batching="a fixed wait",
        validation="none",
        settings="`fast_queue=True` (advised above 100 requests/s)",
        variants=_waits("wait", 1e-3),
    ),
    Peer(
        name="bentoml",
        title="BentoML",
        requirements=("bentoml==1.4.39",),
        program=_BENTOML,
        command=(
            *("-m", "bentoml", "serve", "app:Bench"),
            *("--host", "127.0.0.1", "--port", "$port"),
        ),
        batching="adaptive",
        validation="requests and answers",
        settings="`batchable=True`; a request is a list of one, as its batches want",
        variants=_same({"": {}}),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
        payload='{"batch": [{"text": "$text"}]}',
        answer='[{"length": $length}]',
    ),
    Peer(
        name="ray",
        title="Ray Serve",
        requirements=("ray[serve]==2.60.0",),
        program=_RAY,
        command=("app.py",),
        batching="a fixed wait",
        validation="none",
        settings="`RAY_SERVE_THROUGHPUT_OPTIMIZED=1`, `max_ongoing_requests=1024`",
        variants=_waits("wait", 1e-3),
        # A call that blocks belongs into a thread, or no batch can form beside it.
        words={
            "empty": {"call": "model(texts)"},
            "sleep": {"call": "await asyncio.to_thread(model, texts)"},
        },
        environment={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
    Peer(
        name="flask",
        title="plain Flask",
        requirements=("flask==3.1.3", "gunicorn==27.0.1"),
        program=_FLASK,
        command=_GUNICORN,
        batching="none",
        validation="none",
        settings="gunicorn with one worker of threads",
        variants=_same(_THREADS),
    ),
    Peer(
        name="fastapi",
        title="FastAPI",
        requirements=("fastapi==0.165.0", "uvicorn[standard]==0.54.0"),
        program=_FASTAPI,
        command=(
            *("-m", "uvicorn", "--workers", "1", "--no-access-log", "--log-level", "warning"),
            *("--host", "127.0.0.1", "--port", "$port", "app:app"),
        ),
        batching="none",
        validation="requests and answers",
        settings="one uvicorn worker with uvloop and httptools",
        variants=_same({"": {}}),
        # As its documents say: `def` for what blocks, which then runs in a pool of threads.
        words={"empty": {"define": "async def"}, "sleep": {"define": "def"}},
    ),
]
PEERS = {peer.name: peer for peer in _ALL}
