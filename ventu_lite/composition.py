"""What a service is once its stages are complete: schemas, examples, sizes and the pipeline."""

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import Codec, Config
from .declarations import Side, declared
from .errors import RegistrationError
from .examples import Probe, find_examples
from .functions import place, where_from
from .handovers import doubt_about_lists, doubts_about_types, refuse_mixed_up
from .isolation import BatchInfer, OnBlameless, SingleInfer, hashable
from .pipeline import Mode, Pipeline
from .schema_examples import batch_size_in
from .stages import Stage, is_size
from .validation import Schema


@dataclass(frozen=True)
class Composition:
    """A service whose stages are complete and fit together.

    Attributes:
        stages: By slot: "setup", "preprocess", "infer", "batch infer", …
        config: The settings.
        request, response: The schemas.
        probes: The examples, checked.
        warmup_batch_size: How many copies of an example make the warm-up batch.
        doubt: What the user may have meant instead, "" if nothing.
        where: ``file:line`` of the code that asked for it first.
    """

    stages: Mapping[str, Stage]
    config: Config
    request: Schema
    response: Schema
    probes: list[Probe]
    warmup_batch_size: int
    doubt: str
    where: str

    @property
    def documents(self) -> list[Any]:
        """The examples as JSON values, but for those that JSON cannot say."""
        return [probe.document for probe in self.probes if probe.document is not None]

    @property
    def max_batch_size(self) -> int:
        """How many items a call may get, see ``largest_batch``."""
        return largest_batch(self.stages, self.config)

    @property
    def batch_key(self) -> Callable[[Any], Hashable] | None:
        """What tells which items may share a call; ``None`` if all may."""
        stage = self.stages.get("batch infer")
        key = stage.options.key if stage else None
        return hashable(key, stage.where) if stage and key else None

    @property
    def worker_stage(self) -> Stage:
        """The model call of a worker."""
        return self.stages.get("batch infer") or self.stages["infer"]

    def pipeline(
        self, *, prefer_batch: bool, clock: Callable[[], float], on_blameless: OnBlameless
    ) -> Pipeline:
        """Return the stages as one pipeline.

        Args:
            prefer_batch: Which function to call where both are registered.
            clock: Monotonic seconds.
            on_blameless: Called when the batch function raised, but no item is to blame.
        """
        mode = self._mode(prefer_batch=prefer_batch)
        pre, post = self.stages.get("preprocess"), self.stages.get("postprocess")
        return Pipeline(
            self.request,
            self.response,
            preprocess=pre.fn if pre else None,
            infer=self._infer(mode, clock, on_blameless),
            postprocess=post.fn if post else None,
            mode=mode,
            last=(post or self.stages["batch infer" if mode == "batch" else "infer"]).where,
            clock=clock,
        )

    def _mode(self, *, prefer_batch: bool) -> Mode:
        if prefer_batch:
            return "batch" if "batch infer" in self.stages else "single"
        return "single" if "infer" in self.stages else "batch"

    def _infer(
        self, mode: Mode, clock: Callable[[], float], on_blameless: OnBlameless
    ) -> SingleInfer | BatchInfer:
        if mode == "single":
            return SingleInfer(self.stages["infer"].fn)
        stage = self.stages["batch infer"]
        return BatchInfer(
            stage.fn,
            max_batch_size=stage.options.max_batch_size,
            isolate=stage.options.isolate and stage.options.retry,
            key=self.batch_key,
            timeout=self.config.timeout,
            clock=clock,
            where=stage.where,
            on_blameless=on_blameless,
        )


def compose(
    stages: Mapping[str, Stage],
    config: Config,
    *,
    request: Any,
    response: Any,
    examples: Any,
    warmup_batch_size: int | None,
) -> Composition:
    """Check that stages are complete and fit together.

    Args:
        stages: By slot.
        config: The settings of the service.
        request: The others are what the user gave to ``Service``, ``None`` if nothing.
        response: See ``Service``.
        examples: See ``Service``.
        warmup_batch_size: See ``Service``.

    Raises:
        RegistrationError: There is no ``infer``, a schema is unknown, a stage is annotated with a
            list of what it gets, or an example does not fit. The message shows the fix.
    """
    if stages.keys().isdisjoint(("infer", "batch infer")):
        raise RegistrationError(
            f"service {config.name!r} has no model call. Decorate it: @service.infer, or"
            " @service.infer(batch=True) if it takes a list;"
            " above the line that asks for the app."
        )
    stages = {slot: stage.with_late_names() for slot, stage in stages.items()}
    requests = _schema("request", request, stages, config)
    responses = _schema("response", response, stages, config)
    refuse_mixed_up(stages, requests.annotation)
    doubt = doubt_about_lists(stages) if request is None else ""
    probes = _probes(examples, requests, responses, config, doubt)
    _warn(filter(None, [doubt, *doubts_about_types(stages, requests.annotation)]))
    most = largest_batch(stages, config)
    size = _warmup_size(warmup_batch_size, requests, most)
    return Composition(stages, config, requests, responses, probes, size, doubt, where_from())


def _schema(side: Side, given: Any, stages: Mapping[str, Stage], config: Config) -> Schema:
    annotation = declared(side, given, stages, config.name)
    most = int(config.max_body) if side == "request" else None
    try:
        return Schema(annotation, max_body=most)
    except RegistrationError as exc:
        raise RegistrationError(f"the {side} of service {config.name!r}: {exc}") from exc.__cause__


def _probes(
    given: Any, request: Schema, response: Schema, config: Config, doubt: str
) -> list[Probe]:
    codecs: list[Codec] = ["json", "msgpack"] if config.codec == "auto" else [config.codec]
    try:
        return find_examples(given, request, response, codecs)
    except RegistrationError as exc:
        if not doubt:
            raise
        raise RegistrationError(f"{exc} {doubt}") from exc.__cause__


def _warn(doubts: Iterable[str]) -> None:
    for doubt in doubts:
        warnings.warn_explicit(doubt, UserWarning, *place())


def largest_batch(stages: Mapping[str, Stage], config: Config) -> int:
    """Return how many items a call may get: as many as the decorator says, if it says so.

    A setting lowers that, and counts where the decorator says nothing; its default never lowers.
    """
    stage = stages.get("batch infer")
    ceiling = stage.options.max_batch_size if stage else None
    if ceiling is None:
        return config.max_batch_size
    is_set = "max_batch_size" in config.model_fields_set
    return min(ceiling, config.max_batch_size) if is_set else ceiling


def _warmup_size(given: Any, request: Schema, most: int) -> int:
    size = batch_size_in(request) if given is None else given
    if size is None:
        return most
    if not is_size(size):
        raise RegistrationError(f"warmup_batch_size is {size!r}, expected an integer from 1")
    return min(int(size), most)
