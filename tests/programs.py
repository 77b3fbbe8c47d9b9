"""Files of a user that are run to their end, as ``python model.py`` does."""

import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

# Generous: it only has to end a program that hangs.
_TIMEOUT = 60.0


def run_file(
    folder: Path, text: str, code: str, *args: str, ignored: Sequence[str] = ()
) -> list[str]:
    """Run a file in which a warning is an error, and return the words that it prints.

    Args:
        folder: Where it is written and run.
        text: How it begins.
        code: How it goes on, indented as one likes.
        args: Of its command line.
        ignored: Categories of warnings that are no errors.
    """
    path = folder / "model.py"
    path.write_text(text + textwrap.dedent(code))
    options = ["-Werror", *(f"-Wignore::{category}" for category in ignored)]
    done = subprocess.run(
        [sys.executable, *options, str(path), *args],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        cwd=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()
