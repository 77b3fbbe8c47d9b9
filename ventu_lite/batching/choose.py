"""Which policy the settings ask for."""

from ventu_lite.batching.adaptive import AdaptiveWait
from ventu_lite.batching.policy import FixedWait, Policy
from ventu_lite.config import Config


def make_policy(config: Config) -> Policy:
    """Return a new policy, as ``max_wait_policy`` and ``max_wait`` say."""
    if config.max_wait_policy == "fixed":
        return FixedWait(config.max_wait)
    return AdaptiveWait(config.max_wait)
