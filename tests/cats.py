"""A service with every kind of stage but set-up, for tests that look at how it is composed."""

from typing import Any

from pydantic import BaseModel, Field

from ventu_lite import Service


class Request(BaseModel):
    text: str = Field(min_length=2, examples=["my cat"])


class Response(BaseModel):
    score: float


def clean(request: Request) -> str:
    return request.text


def rate(text: str) -> float:
    return len(text) / 10


def rate_all(texts: list[str]) -> list[float]:
    return [rate(text) for text in texts]


def label(score: float) -> Response:
    return Response(score=score)


def full_service(**options: Any) -> Service:
    service = Service("full", **options)
    service.preprocess(clean)
    service.infer(rate)
    service.infer(batch=True, max_batch_size=8)(rate_all)
    service.postprocess(label)
    return service
