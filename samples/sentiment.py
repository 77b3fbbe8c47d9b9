"""Is a sentence kind or unkind? VADER, a lexicon of 7,500 rated words, answers.

In a clone, install with `pip install -e '.[samples]'`, start with
`flask --app samples/sentiment.py run`, then ask:
`curl localhost:5000/inference -d '{"text": "my cat is very cute"}'`
"""

from typing import Any

from pydantic import BaseModel, Field

from ventu_lite import Service


class Request(BaseModel):
    text: str = Field(min_length=2, max_length=10_000)


class Response(BaseModel):
    positive: float = Field(ge=0, le=1)
    negative: float = Field(ge=0, le=1)


EXAMPLES = [
    {"text": "my cat is very cute"},
    {"text": "the service was slow and the food was awful"},
    {"text": "the train leaves at nine"},
]

service = Service("sentiment", version="1.0", examples=EXAMPLES)
model: Any = None


@service.setup
def load() -> None:
    """Read the lexicon, once in each process and not while this file is imported."""
    global model
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    model = SentimentIntensityAnalyzer()


@service.preprocess
def clean(request: Request) -> str:
    return request.text.strip()


@service.infer(batch=True, max_batch_size=32)
def rate(texts: list[str]) -> list[float]:
    """Rate each text from -1, most unkind, to 1, most kind."""
    return [model.polarity_scores(text)["compound"] for text in texts]


@service.postprocess
def label(score: float) -> Response:
    return Response(positive=(1 + score) / 2, negative=(1 - score) / 2)


app = service.app
