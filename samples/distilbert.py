"""Is a sentence positive or negative? DistilBERT answers: the example of ventu's README.

In a clone, install with `pip install -e '.[distilbert]'`, start with
`flask --app samples/distilbert.py run`, then ask:
`curl localhost:5000/inference -d '{"text": "my cat is very cute"}'`

The model comes from the hub at the first start, later from its cache: `HF_HUB_OFFLINE=1` then does
without the hub. `MODEL` names another model, or a directory with one.
"""

import os
from typing import Any

from pydantic import BaseModel, Field

from ventu_lite import Service

MODEL = os.environ.get("MODEL", "distilbert-base-uncased-finetuned-sst-2-english")
LONGEST = 512  # tokens


class Request(BaseModel):
    text: str = Field(min_length=2, max_length=10_000, examples=["my cat is very cute", "how sad"])


class Response(BaseModel):
    positive: float = Field(ge=0, le=1)
    negative: float = Field(ge=0, le=1)


service = Service("distilbert", version=MODEL, timeout=30)
tokenizer: Any = None
model: Any = None


@service.setup
def load() -> None:
    global tokenizer, model
    if MODEL.startswith((".", "/")) and not os.path.isdir(MODEL):
        raise FileNotFoundError(f"MODEL={MODEL!r} is no directory")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        # What is below transformers' own tokenizer keeps no state and may be shared by threads.
        tokenizer = AutoTokenizer.from_pretrained(MODEL).backend_tokenizer
        model = AutoModelForSequenceClassification.from_pretrained(MODEL).eval()
    except OSError as exc:
        reason = str(exc).partition("\n")[0]
        raise OSError(
            f"no model {MODEL!r}: {reason} Without a network, MODEL=DIRECTORY names what"
            " save_pretrained wrote; see samples/README.md."
        ) from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)


@service.preprocess
def tokenize(request: Request) -> list[int]:
    ids: list[int] = tokenizer.encode(request.text).ids
    return ids


@service.infer(batch=True, max_batch_size=32)
def classify(batch: list[list[int]]) -> list[float]:
    """Pad the sentences to the longest; return how likely each is positive."""
    import torch

    longest = max(map(len, batch))
    ids = torch.tensor([item + [0] * (longest - len(item)) for item in batch])
    mask = torch.tensor([[n < len(item) for n in range(longest)] for item in batch])
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits
    scores: list[float] = logits.softmax(dim=1)[:, 1].tolist()
    return scores


@service.postprocess
def label(score: float) -> Response:
    return Response(positive=score, negative=1 - score)


app = service.app
