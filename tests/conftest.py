"""What every test may count on: no setting of the machine reaches it."""

import os

import pytest
from hypothesis import settings

# A busy machine must not fail a property.
settings.register_profile("ventu_lite", deadline=None)
settings.load_profile("ventu_lite")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("VENTU_"):
            monkeypatch.delenv(name)
