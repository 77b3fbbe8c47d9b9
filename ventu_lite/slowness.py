"""Words for a model that is slower than a request may take."""


def too_slow(size: int, seconds: float, timeout: float, *, alone: float | None = None) -> str:
    """Say what to do if a call took longer than ``timeout``; "" if it did not.

    Args:
        size: Items in the call.
        seconds: How long it took.
        timeout: The setting: seconds from the arrival of a request to 504.
        alone: How long a call with one item took, if that is known.
    """
    if seconds <= timeout:
        return ""
    may_be_less = size > 1 and (alone is None or alone <= timeout)
    or_less = ", or lower VENTU_MAX_BATCH_SIZE" if may_be_less else ""
    return (
        f"the model took {seconds:.1f} s for {size} item(s), but a request waits no longer than"
        f" timeout, {timeout:g} s: raise VENTU_TIMEOUT{or_less}"
    )
