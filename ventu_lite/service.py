"""The registry: decorators collect plain functions, the first use composes them.

No I/O here. ``app``, ``blueprint``, ``predict`` and ``run_*`` import their shell when they are
called, so that importing a user's file stays cheap and a worker never imports what it does not
need.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from .addresses import TCPAddress, UnixAddress
from .config import Codec, Config, refuse_unknown
from .errors import RegistrationError
from .examples import Probe, find_examples, schema_batch_size
from .isolation import BatchInfer, SingleInfer
from .pipeline import Mode, Pipeline
from .stages import MISSING, NO_OPTIONS, Kind, Options, Stage, make_stage, where_from
from .validation import Schema

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from .health import Health
    from .runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])

# What a service takes that is no setting.
_PARAMETERS: Final = ("request", "response", "examples", "warmup_batch_size", "config")


@dataclass(frozen=True)
class Composition:
    """A service whose stages are complete and fit together.

    Attributes:
        request, response: The schemas.
        probes: The examples, checked.
        warmup_batch_size: How many copies of an example make the warm-up batch.
        where: ``file:line`` of the code that asked for it first.
    """

    request: Schema
    response: Schema
    probes: list[Probe]
    warmup_batch_size: int
    where: str


class Service:
    """A model service made of plain functions.

    Register the functions with the decorators, then use ``service.app`` (or ``blueprint``).
    Only ``infer`` is required. Decorators return the function unchanged; ``add_stage`` does the
    same without a decorator. Register from one thread, at import.

    Args:
        name: What metrics, logs and the API document call it.
        request: The schema of one request, if the annotation of the first stage does not tell.
        response: The schema of one response, if the annotation of the last stage does not tell.
        version: The version of the model, for the API document.
        examples: A list of requests, or of ``(request, expected response)`` pairs or
            ``Example`` objects; they warm the model up and are what ``/health`` runs.
        warmup_batch_size: Copies of an example in the warm-up batch.
        config: Settings to start from; ``settings`` are put on top.
        settings: Fields of ``Config``, such as ``timeout=2``.

    Raises:
        ConfigError: A setting has a bad value.
        RegistrationError: There is no such setting.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        request: Any = None,
        response: Any = None,
        version: str | None = None,
        examples: Any = None,
        warmup_batch_size: int | None = None,
        config: Config | None = None,
        **settings: Any,
    ) -> None:
        refuse_unknown(settings, others=_PARAMETERS)
        named = {"name": name, "version": version}
        declared = config.declared() if config else {}
        declared |= settings | {key: value for key, value in named.items() if value is not None}
        self.config = Config(**declared)
        self._request = request
        self._response = response
        self._examples = examples
        self._warmup_batch_size = warmup_batch_size
        self._stages: dict[str, Stage] = {}
        self._composition: Composition | None = None
        self._runtime: Runtime | None = None
        self._app: Flask | None = None
        self._blueprint: Blueprint | None = None

    def __repr__(self) -> str:
        stages = ", ".join(stage.where.partition(" ")[0] for stage in self._stages.values())
        return f"<Service {self.name!r} [{stages}]>"

    @property
    def name(self) -> str:
        """What metrics, logs and the API document call it."""
        return self.config.name

    # ------------------------------------------------------------------ registration

    @overload
    def setup(self, fn: F, /) -> F: ...
    @overload
    def setup(self, /) -> Callable[[F], F]: ...
    def setup(self, fn: Any = None, /) -> Any:
        """Register what loads the model: called without arguments, once in each process.

        It runs before warm-up and before anything is answered, never at import.
        """
        return self._decorate("setup", fn)

    @overload
    def preprocess(self, fn: F, /) -> F: ...
    @overload
    def preprocess(self, /) -> Callable[[F], F]: ...
    def preprocess(self, fn: Any = None, /) -> Any:
        """Register what turns one request into one item; several threads may call it at once."""
        return self._decorate("preprocess", fn)

    @overload
    def infer(self, fn: F, /) -> F: ...
    @overload
    def infer(
        self,
        /,
        *,
        batch: bool = ...,
        max_batch_size: int | None = ...,
        isolate: bool = ...,
        retry: bool = ...,
        key: Callable[[Any], Hashable] | None = ...,
    ) -> Callable[[F], F]: ...
    def infer(
        self,
        fn: F | None = None,
        /,
        *,
        batch: bool = False,
        max_batch_size: int | None = None,
        isolate: bool = True,
        retry: bool = True,
        key: Callable[[Any], Hashable] | None = None,
    ) -> F | Callable[[F], F]:
        """Register the model call: one item in and one result out, or many of both.

        One function of each kind may be registered: Flask then calls the single one, workers
        the batch one. A batch function is never called by two threads of a process at once.

        Args:
            fn: The function; left out where options are given.
            batch: It takes a list of *n* items and returns *n* results, in the same order; a
                result may be an exception instance, which then fails that item alone.
            max_batch_size: A ceiling that nothing raises; larger batches are split.
            isolate: When it raises for a batch, call it again with halves until the guilty
                items stand alone.
            retry: It may be called again with the same items, after it raised or its process
                died.
            key: Items of different keys never share a call.
        """
        options = Options(batch, max_batch_size, isolate, retry, key)
        return self._decorate("infer", fn, options)

    @overload
    def postprocess(self, fn: F, /) -> F: ...
    @overload
    def postprocess(self, /) -> Callable[[F], F]: ...
    def postprocess(self, fn: Any = None, /) -> Any:
        """Register what turns one result into one response; several threads may call it at once."""
        return self._decorate("postprocess", fn)

    @overload
    def teardown(self, fn: F, /) -> F: ...
    @overload
    def teardown(self, /) -> Callable[[F], F]: ...
    def teardown(self, fn: Any = None, /) -> Any:
        """Register what runs when a process ends in which ``setup`` succeeded."""
        return self._decorate("teardown", fn)

    def add_stage(
        self,
        kind: Kind,
        fn: Callable[..., Any],
        *,
        batch: bool = False,
        max_batch_size: int | None = None,
        isolate: bool = True,
        retry: bool = True,
        key: Callable[[Any], Hashable] | None = None,
    ) -> None:
        """Register ``fn`` without a decorator.

        Args:
            kind: "setup", "preprocess", "infer", "postprocess" or "teardown".
            fn: The function.
            batch: This and the others are the options of ``infer``.
            max_batch_size: See ``infer``.
            isolate: See ``infer``.
            retry: See ``infer``.
            key: See ``infer``.

        Raises:
            RegistrationError: The place is taken, the service is composed already, or the
                function cannot be called as its place wants it.
        """
        options = Options(batch, max_batch_size, isolate, retry, key)
        self._add(make_stage(kind, fn, options))

    def _decorate(
        self, kind: Kind, fn: F | None, options: Options = NO_OPTIONS
    ) -> F | Callable[[F], F]:
        def register(fn: F) -> F:
            self._add(make_stage(kind, fn, options))
            return fn

        return register if fn is None else register(fn)

    def _add(self, stage: Stage) -> None:
        if self._composition is not None:
            raise RegistrationError(
                f"{stage.where} comes too late: service {self.name!r} was composed at"
                f" {self._composition.where}. Move that line below all decorated functions."
            )
        taken = self._stages.get(stage.slot)
        if taken is not None:
            raise RegistrationError(
                f"service {self.name!r} has its {stage.slot} stage already: {taken.where}."
                f" Remove it, or give {stage.where} a service of its own."
            )
        self._stages[stage.slot] = stage

    # ------------------------------------------------------------------- composition

    def stage(self, slot: str) -> Stage | None:
        """Return the stage at "setup", "preprocess", "infer", "batch infer", …, if there is one."""
        return self._stages.get(slot)

    def compose(self) -> Composition:
        """Check that the stages are complete and fit together; the first call decides.

        Raises:
            RegistrationError: There is no ``infer``, a schema is unknown, or an example does
                not fit. The message shows the fix.
        """
        if self._composition is None:
            self._check_model()
            max_body = int(self.config.max_body)
            request = Schema(self._schema("request", self._request), max_body=max_body)
            response = Schema(self._schema("response", self._response))
            probes = find_examples(self._examples, request, response, self.codecs)
            self._composition = Composition(
                request, response, probes, self._warmup_size(request), where_from()
            )
        return self._composition

    @property
    def codecs(self) -> list[Codec]:
        """The codecs that this service reads and writes, the preferred one first."""
        return ["json", "msgpack"] if self.config.codec == "auto" else [self.config.codec]

    def mode(self, *, prefer_batch: bool) -> Mode:
        """Tell whether the function that will be called is one of one item or of many."""
        has = {"single": "infer" in self._stages, "batch": "batch infer" in self._stages}
        wanted: Mode = "batch" if prefer_batch else "single"
        other: Mode = "single" if prefer_batch else "batch"
        return wanted if has[wanted] else other

    def pipeline(self, *, prefer_batch: bool, clock: Callable[[], float]) -> Pipeline:
        """Return the stages as one pipeline.

        Args:
            prefer_batch: Which function to call where both are registered.
            clock: Monotonic seconds.

        Raises:
            RegistrationError: As ``compose``.
        """
        composition = self.compose()
        mode = self.mode(prefer_batch=prefer_batch)
        pre, post = self._stages.get("preprocess"), self._stages.get("postprocess")
        return Pipeline(
            composition.request,
            composition.response,
            preprocess=pre.fn if pre else None,
            infer=self._infer(mode, clock),
            postprocess=post.fn if post else None,
            mode=mode,
            clock=clock,
        )

    def _infer(self, mode: Mode, clock: Callable[[], float]) -> SingleInfer | BatchInfer:
        if mode == "single":
            return SingleInfer(self._stages["infer"].fn)
        stage = self._stages["batch infer"]
        return BatchInfer(
            stage.fn,
            max_batch_size=stage.options.max_batch_size,
            isolate=stage.options.isolate and stage.options.retry,
            key=stage.options.key,
            timeout=self.config.timeout,
            clock=clock,
            where=stage.where,
        )

    def _check_model(self) -> None:
        if self._stages.keys().isdisjoint(("infer", "batch infer")):
            raise RegistrationError(
                f"service {self.name!r} has no model call. Decorate it: @service.infer, or"
                " @service.infer(batch=True) if it takes a list;"
                " above the line that asks for the app."
            )

    def _schema(self, which: str, given: Any) -> Any:
        if given is not None:
            return given
        infers = [s for slot in ("infer", "batch infer") if (s := self._stages.get(slot))]
        outer = self._stages.get("preprocess" if which == "request" else "postprocess")
        stages = [outer] if outer else infers
        hints = [s.input_type() if which == "request" else s.output_type() for s in stages]
        known = [hint for hint in hints if hint is not MISSING]
        if not known:
            raise RegistrationError(self._unknown_schema(which, stages[0]))
        return known[0]

    def _unknown_schema(self, which: str, stage: Stage) -> str:
        kind = which.capitalize()
        typed = f"list[{kind}]" if stage.options.batch else kind
        name, parameter = stage.name, stage.parameter
        shown = f"{name}({parameter}: {typed})" if which == "request" else f"{name}(...) -> {typed}"
        part = "first parameter" if which == "request" else "return value"
        written = stage.written(parameter if which == "request" else "return")
        found = "has no annotation" if written is MISSING else f"says {written!r}, which tells none"
        if stage.options.batch and isinstance(written, type):
            found = f"says {written.__name__}, but a batch function has a list there"
        # A lambda or a builtin cannot be annotated.
        write = f"Write `def {shown}`, or say" if stage.is_annotatable else "Say"
        return (
            f"service {self.name!r} has no {which} schema: the {part} of {stage.where} {found}."
            f" {write} Service({self.name!r}, {which}={kind})."
        )

    def _warmup_size(self, request: Schema) -> int:
        size = self._warmup_batch_size
        if size is None:
            size = schema_batch_size(request)
        if size is None:
            size = self.max_batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RegistrationError(f"warmup_batch_size is {size!r}, expected an integer from 1")
        return min(size, self.max_batch_size)

    @property
    def max_batch_size(self) -> int:
        """How many items a call may get: the setting, under the ceiling of the decorator."""
        stage = self._stages.get("batch infer")
        ceiling = stage.options.max_batch_size if stage else None
        return min(ceiling or self.config.max_batch_size, self.config.max_batch_size)

    @property
    def batch_key(self) -> Callable[[Any], Hashable] | None:
        """What tells which items may share a call; ``None`` if all may."""
        stage = self._stages.get("batch infer")
        return stage.options.key if stage else None

    @property
    def may_retry(self) -> bool:
        """Whether the model may be called again with the items of a worker that died."""
        stage = self._stages.get("batch infer") or self._stages.get("infer")
        return stage is None or stage.options.retry

    # ------------------------------------------------------------------------ shells

    @property
    def runtime(self) -> "Runtime":
        """What runs the stages in this process; the same object each time."""
        if self._runtime is None:
            from .runtime import Runtime
            from .startup import making

            with making:  # two threads may ask for the first time together
                self._runtime = self._runtime or Runtime(self)
        return self._runtime

    def predict(self, data: Any) -> Any:
        """Take one request all the way, validation included, and return the response.

        For tests and notebooks. The first call sets the service up.

        Args:
            data: What a client would send, as a Python value or an instance of the schema.

        Raises:
            InvalidPayload: It does not fit the request schema.
            Exception: What a stage raises.
        """
        (answer,) = self.runtime.predict([data], prefer_batch=False)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def predict_batch(self, data: list[Any]) -> list[Any]:
        """Take many requests all the way in one batch.

        Args:
            data: *n* requests, as for ``predict``.

        Returns:
            *n* responses in the same order; in place of one that failed, the exception that
            ``predict`` would raise.
        """
        return self.runtime.predict(data, prefer_batch=True)

    def ask(self, data: Any, *, timeout: float | None = None) -> Any:
        """Have one request answered as ``POST /inference`` would, for routes of your own.

        It shares a batch with the requests of others; under ``serve`` a worker answers it.

        Args:
            data: What a client would send, as a Python value or an instance of the schema.
            timeout: Seconds that it may take, at most the setting ``timeout``.

        Raises:
            InferenceFailed: It failed. An ``HTTPException``: a route may let it pass.
        """
        (answer,) = self.ask_all([data], timeout=timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask_all(self, data: Sequence[Any], *, timeout: float | None = None) -> list[Any]:
        """Have many requests answered at once, each as with ``ask``.

        Args:
            data: *n* requests.
            timeout: Seconds that they may take together, at most the setting ``timeout``.

        Returns:
            *n* responses in the same order; in place of one that failed, the ``InferenceFailed``.

        Raises:
            InferenceFailed: There is no place for all of them, or no model is ready.
        """
        from .asking import failed_together

        with failed_together():
            return self.runtime.ask_all(list(data), timeout)

    def health_check(self, batch: bool = False) -> "Health":
        """Run the examples and say how it went.

        Args:
            batch: Run each as a batch of ``warmup_batch_size``, too.
        """
        return self.runtime.check_health(batch=batch)

    @property
    def blueprint(self) -> "Blueprint":
        """A Flask blueprint with all routes; the same one each time.

        ``app.register_blueprint(service.blueprint, url_prefix="/v1")``; several services in one
        app work.
        """
        if self._blueprint is None:
            from .blueprint import create_blueprint
            from .startup import making

            with making:
                self._blueprint = self._blueprint or create_blueprint(self)
        return self._blueprint

    @property
    def app(self) -> "Flask":
        """A Flask app with all routes; the same one each time."""
        if self._app is None:
            from .blueprint import create_app
            from .startup import making

            with making:
                self._app = self._app or create_app(self)
        return self._app

    def run_http(self, host: str | None = None, port: int | None = None) -> None:
        """Serve HTTP with Flask's development server until Ctrl-C. For trying things out."""
        from .blueprint import run_http

        run_http(self, host=host, port=port)

    def run_unix(self, path: str | None = None) -> None:
        """Run a worker that joins the batching service at a Unix socket, until SIGTERM."""
        from .worker_process import run_worker_unless_imported

        run_worker_unless_imported(self, UnixAddress(path or self.config.socket))

    def run_tcp(self, host: str, port: int) -> None:
        """Run a worker that joins the batching service at a TCP address, until SIGTERM."""
        from .worker_process import run_worker_unless_imported

        run_worker_unless_imported(self, TCPAddress(host, port))
