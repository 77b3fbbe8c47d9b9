"""Deployments for all tests of a module: each starts when a test first asks for it."""

import contextlib
from collections.abc import Mapping

from deployments import Deployment, deployed
from processes import short_directory


class Lazily(dict[str, Deployment]):
    """Deployments by the way they run; they end with a stack.

    Args:
        stack: What ends them.
        app: The Python code.
        env: Variables for all processes.
    """

    def __init__(self, stack: contextlib.ExitStack, app: str, env: Mapping[str, str]) -> None:
        self._stack = stack
        self._app = app
        self._env = env

    def __missing__(self, how: str) -> Deployment:
        directory = self._stack.enter_context(short_directory())
        running = deployed(how, self._app, directory, env=self._env)
        self[how] = self._stack.enter_context(running)
        return self[how]
