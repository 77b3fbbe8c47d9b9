"""The settings choose the policy."""

from ventu_lite import Config
from ventu_lite.batching.adaptive import AdaptiveWait
from ventu_lite.batching.choose import make_policy
from ventu_lite.batching.policy import FixedWait


def test_fixed_waits_as_long_as_it_is_told() -> None:
    assert make_policy(Config(max_wait_policy="fixed", max_wait=0.003)) == FixedWait(0.003)


def test_the_default_tunes_itself_up_to_the_longest_wait() -> None:
    policy = make_policy(Config(max_wait=0.004))
    assert isinstance(policy, AdaptiveWait)
    assert policy.max_wait == 0.004


def test_each_policy_learns_for_itself() -> None:
    config = Config()
    assert make_policy(config) is not make_policy(config)
