"""The registry: decorators collect plain functions, the first use composes them.

No I/O here. What a decorator does not need is imported by the method that does: importing a user's
file stays cheap, and a worker never imports what it does not use.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from .addresses import TCPAddress, UnixAddress
from .config import Config, refuse_unknown
from .errors import RegistrationError
from .stages import NO_OPTIONS, Kind, Options, Stage, make_stage

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from .composition import Composition
    from .health import Health
    from .runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])

# What a service takes that is no setting.
_PARAMETERS: Final = ("request", "response", "examples", "warmup_batch_size", "config")


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
            max_batch_size: A ceiling that nothing raises; larger batches are split. The setting
                of this name lowers it where somebody has set it, its default does not.
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
                f" {self._composition.where}. Move that line below all decorated functions; in a"
                " notebook, make the Service anew as well."
            )
        taken = self._stages.get(stage.slot)
        if taken is not None:
            is_again = taken.name == stage.name  # as where a cell of a notebook runs twice
            raise RegistrationError(
                f"service {self.name!r} has its {stage.slot} stage already: {taken.where}."
                f" Remove it, or give {stage.where} a service of its own"
                + ("; in a notebook, make the Service anew." if is_again else ".")
            )
        self._stages[stage.slot] = stage

    # ------------------------------------------------------------------- composition

    def compose(self) -> "Composition":
        """Check that the stages are complete and fit together; the first call decides.

        Raises:
            RegistrationError: There is no ``infer``, a schema is unknown, or an example does
                not fit. The message shows the fix.
        """
        if self._composition is None:
            from .composition import compose

            self._composition = compose(
                self._stages,
                self.config,
                request=self._request,
                response=self._response,
                examples=self._examples,
                warmup_batch_size=self._warmup_batch_size,
            )
        return self._composition

    # ------------------------------------------------------------------------ shells

    @property
    def runtime(self) -> "Runtime":
        """What runs the stages in this process; the same object each time."""
        if self._runtime is None:
            from .forks import making
            from .runtime import Runtime

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
        """Take many requests all the way at once; a batch function gets as many as it may.

        That is all of them, unless its ``max_batch_size`` or ``key`` has them in several calls.

        Args:
            data: *n* requests, as for ``predict``.

        Returns:
            *n* responses in the same order; in place of one that failed, the exception that
            ``predict`` would raise.
        """
        return self.runtime.predict(data, prefer_batch=True)

    def ask(self, data: Any, *, timeout: float | None = None) -> Any:
        """Have one request answered as ``POST /inference`` would, for routes of your own.

        It shares a batch with the requests of others. Under ``serve`` a worker answers it: a value
        that JSON and msgpack cannot carry as it is fails with 500, and the log says why; and the
        response schema reads what it wrote, so each field needs one alias for both ways.

        Args:
            data: What a client would send, as a Python value or an instance of the schema.
            timeout: Seconds that it may take, above 0; at most the setting ``timeout``, which is
                also meant by ``math.inf``.

        Raises:
            InferenceFailed: It failed. An ``HTTPException``: a route may let it pass.
            TypeError, ValueError: The timeout is no such number.
        """
        (answer,) = self.ask_all([data], timeout=timeout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask_all(self, data: Sequence[Any], *, timeout: float | None = None) -> list[Any]:
        """Have many requests answered at once, each as with ``ask``.

        Args:
            data: *n* requests.
            timeout: Seconds that they may take together, as with ``ask``.

        Returns:
            *n* responses in the same order; in place of one that failed, the ``InferenceFailed``.

        Raises:
            InferenceFailed: There is no place for all of them, or no model is ready.
            TypeError, ValueError: The timeout is no number above 0.
        """
        return self.runtime.asking.ask_all(list(data), timeout)

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
            from .forks import making

            with making:
                self._blueprint = self._blueprint or create_blueprint(self)
        return self._blueprint

    @property
    def app(self) -> "Flask":
        """A Flask app with all routes; the same one each time."""
        if self._app is None:
            from .blueprint import create_app
            from .forks import making

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
