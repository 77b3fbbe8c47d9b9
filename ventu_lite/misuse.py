"""What is wrong with the user's file, in one line where it is used wrongly."""

import difflib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

from flask.cli import NoAppException

from .errors import ConfigError, RegistrationError
from .failures import shared_failures
from .options import CRASHED, WRONG_USAGE, fail
from .service import Service
from .tracebacks import beginning_with_the_users, first_place_of, last_place_of, place_of

_HOW_TO_HAVE_AN_APP: Final = (
    "Name the file that holds the service: `python -m ventu_lite --app FILE.py ...`."
    " It needs a line `app = service.app` below the decorated functions."
)
_HOW_TO_MAKE: Final = (
    "Service takes its name first, and all else with a keyword:"
    ' Service("name", request=Request, response=Response).'
)
# How Python begins a TypeError for arguments that do not fit.
_BAD_CALL: Final = re.compile(rf"{Service.__name__}\.(\w+)\(\) ")
_NO_MODULE: Final = re.compile(r"Could not import '(\w+)'")
_UNKNOWN_OPTION: Final = re.compile(r"unexpected keyword argument '(\w+)'")


def explain_failure(exc: Exception, *, is_debugging: bool) -> NoReturn:
    """Say what is wrong with the user's file, or with what we were told of it, and end."""
    if isinstance(exc, NoAppException):
        if isinstance(exc.__context__, ImportError) and first_place_of(exc.__context__):
            fail(_about_import(exc.__context__), WRONG_USAGE)
        fail(f"{exc.message}{_near_file(str(exc.message))}\n\n{_HOW_TO_HAVE_AN_APP}", WRONG_USAGE)
    if said := _about_misuse(exc):
        place = place_of(exc)
        fail(f"{place}: {said}" if place else said, WRONG_USAGE)
    failures = shared_failures()
    failures.leave_note(exc)
    if not is_debugging and failures.is_news(exc):
        beginning_with_the_users(exc)
        sys.__excepthook__(type(exc), exc, exc.__traceback__)  # says which name was meant
    sys.exit(CRASHED)


def _near_file(said: str) -> str:
    """Tell which file here may have been meant; "" if none has such a name."""
    missing = _NO_MODULE.search(said)
    names = [path.stem for path in Path.cwd().glob("*.py")]
    near = difflib.get_close_matches(missing[1], names, n=1) if missing else []
    return f" Did you mean {near[0]}.py?" if near else ""


def _about_import(exc: ImportError) -> str:
    """Tell what the user's file imports in vain."""
    app_file, place = first_place_of(exc), last_place_of(exc)
    by = "" if place == app_file else f", by way of {place}"
    if not isinstance(exc, ModuleNotFoundError) or exc.name is None:
        return f"{app_file}: this import of the app fails{by}: {exc}"
    return (
        f"{app_file}: the app imports the module {exc.name!r}{by}, which {sys.executable} does not"
        " find. Install the package that has it, or correct the name."
    )


def _about_misuse(exc: Exception) -> str:
    """Tell how a service is used wrongly; "" if it is something else that failed."""
    if isinstance(exc, ConfigError | RegistrationError):
        return str(exc)
    if _is_method_of_the_class(exc):
        return 'this needs a service, not the class: say service = Service("name"), with brackets.'
    if isinstance(exc, AttributeError) and isinstance(exc.obj, Service):
        near = difflib.get_close_matches(exc.name or "", dir(Service), n=1)
        return f"{exc}." + (f" Did you mean {near[0]!r}?" if near else "")
    called = _BAD_CALL.match(str(exc)) if isinstance(exc, TypeError) else None
    method = getattr(Service, called[1], None) if called and _means_ours(exc) else None
    if method is None:
        return ""
    if method is Service.__init__:
        return _HOW_TO_MAKE
    return _about_call(str(exc), method)


def _about_call(said: str, method: Callable[..., object]) -> str:
    """Tell what one of our methods takes that was called wrongly."""
    parameters = inspect.signature(method).parameters.values()
    options = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    said, _, _ = said.partition(". Did you mean")  # Python 3.13 suggests one of its own
    unknown = _UNKNOWN_OPTION.search(said)
    near = difflib.get_close_matches(unknown[1], options, n=1) if unknown else []
    if unknown and near:
        return f"{method.__name__}() has no option {unknown[1]!r}. Did you mean {near[0]!r}?"
    known = f"these options: {', '.join(options)}" if options else "no options"
    return f"{said}. It takes {known}."


def _means_ours(exc: Exception) -> bool:
    """Whether ``Service``, where the exception comes from, is ours and not a class of the user."""
    step = exc.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is None or step.tb_frame.f_globals.get("Service", Service) is Service


def _is_method_of_the_class(exc: Exception) -> bool:
    """Whether a decorator was used with ``Service`` itself, so that it took a function for it."""
    if isinstance(exc, TypeError):
        return bool(_BAD_CALL.match(str(exc))) and str(exc).endswith(": 'self'")
    return isinstance(exc, AttributeError) and exc.name == Service._decorate.__name__
