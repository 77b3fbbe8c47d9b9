"""What the fuzzers have found once must stay found, wherever the tests run."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from processes import TIMEOUT, environment

FUZZ = Path(__file__).parent.parent / "fuzz"

BROKEN = """
def check(data: bytes) -> None:
    assert data != b"ouch"
"""
FUZZ_BROKEN = """
from pathlib import Path
import fuzzing
fuzzing.HERE = fuzzing.WORK = Path.cwd()
fuzzing.main("broken")
"""


@pytest.mark.parametrize("target", ["http", "frames", "payloads"])
def test_every_kept_input_is_harmless(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds, the minimised corpus, and whatever has ever failed; no fuzzer is needed for it."""
    monkeypatch.syspath_prepend(str(FUZZ))
    inputs = import_module("fuzzing").known(target)
    check = import_module(f"check_{target}").check
    assert len(inputs) > 40
    harmful = []
    for name, data in inputs.items():
        try:
            check(data)
        except Exception as exc:
            harmful.append(f"{name} {data!r}: {exc!r}")
    assert not harmful, "\n".join(harmful)


def test_a_fuzzer_that_finds_something_fails_and_shows_it(directory: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python")
    for folder in ("seeds", "corpus", "found"):
        (directory / folder).mkdir()
    (directory / "check_broken.py").write_text(BROKEN)
    (directory / "seeds" / "broken.txt").write_text("b'ouch'\n")
    (directory / "seeds" / "broken.dict").write_text('"ouch"\n')
    (directory / "corpus" / "broken.txt").write_text("")
    ended = subprocess.run(
        [sys.executable, "-c", FUZZ_BROKEN],
        cwd=directory,
        env=environment({"PYTHONPATH": f"{FUZZ}:{directory}"}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert ended.returncode != 0
    assert "failing input: b'ouch'" in ended.stderr
    (kept,) = (directory / "found").iterdir()
    assert kept.name.startswith("broken-crash-") and kept.read_bytes() == b"ouch"
