"""What an exception of the warm-up mostly means where its own text does not say it."""

from .functions import innermost
from .stages import Stage

_NO_FLASK = ("Working outside of request context", "Working outside of application context")


def hint_on(exc: BaseException, setup: Stage | None) -> str:
    """Return what the user may have forgotten, "" if nobody knows.

    Args:
        exc: What a stage raised.
        setup: The stage that should have loaded the model.
    """
    said = str(exc)
    if isinstance(exc, RuntimeError) and said.startswith(_NO_FLASK):
        return "stages run without a request of Flask: what they need belongs into the schema"
    if setup and isinstance(exc, AttributeError | TypeError) and "'NoneType'" in said:
        return _forgotten_global(setup)
    return ""


def _forgotten_global(setup: Stage) -> str:
    fn = innermost(setup.fn)
    code, values = getattr(fn, "__code__", None), getattr(fn, "__globals__", {})
    for name in code.co_varnames + code.co_cellvars if code else ():
        if values.get(name, ...) is None:
            return f"{setup.where} sets a local variable `{name}`; say `global {name}` in it"
    return ""
