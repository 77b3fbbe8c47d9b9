"""What a type checker sees of the decorators; mypy checks this file, nobody runs it."""

from collections.abc import Callable

from typing_extensions import assert_type

from ventu_lite import Example, Service

service = Service("typed", request=str, examples=[Example("a", 1.0)], timeout=2.0)


@service.setup
def load() -> None: ...


@service.setup()
def load_again() -> None: ...


@service.preprocess
def clean(text: str) -> list[int]:
    return [len(text)]


@service.infer
def rate(item: list[int]) -> float:
    return sum(item) / 10


@service.infer(batch=True, max_batch_size=32, isolate=True, retry=False, key=len)
def rate_all(batch: list[list[int]]) -> list[float]:
    return [rate(item) for item in batch]


@service.postprocess
def label(score: float) -> dict[str, float]:
    return {"score": score}


@service.teardown
def unload() -> None: ...


class Model:
    def __call__(self, text: str) -> float:
        return 0.0


assert_type(load, Callable[[], None])
assert_type(load(), None)
assert_type(load_again(), None)
assert_type(clean("a"), list[int])
assert_type(rate([1]), float)
assert_type(rate_all([[1]]), list[float])
assert_type(label(0.5), dict[str, float])
assert_type(unload(), None)
assert_type(service.infer(Model()), Model)
assert_type(service.infer(batch=True)(rate_all)([[1]]), list[float])
assert_type(service.add_stage("infer", rate_all, batch=True), None)
assert_type(service.name, str)

# Each of these is an error; an unneeded "ignore" would be one, too.
service.infer(rate, batch=True)  # type: ignore[call-overload]
service.infer(batch="yes")  # type: ignore[call-overload]
service.infer(3)  # type: ignore[call-overload]
service.preprocess(batch=True)  # type: ignore[call-overload]
service.add_stage("serve", rate)  # type: ignore[arg-type]
