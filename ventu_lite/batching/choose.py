"""Which policy the settings ask for."""

from ..config import Config
from .adaptive import AdaptiveWait
from .policy import FixedWait, Policy


def make_policy(config: Config) -> Policy:
    """Return a new policy, as ``max_wait_policy`` and ``max_wait`` say."""
    if config.max_wait_policy == "fixed":
        return FixedWait(config.max_wait)
    return AdaptiveWait(config.max_wait)
