"""The command line: how it finds a service, what it refuses, how it ends."""

import json
import os
import py_compile
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from flask import Flask
from flask.cli import cli as flask_cli
from peers import BatchingPeer
from processes import (
    ROOT,
    SAMPLE,
    TIMEOUT,
    Client,
    Process,
    command,
    short_directory,
    worker,
)

from ventu_lite import Service, ServiceNotFound, __main__
from ventu_lite.cli import group
from ventu_lite.loading import find_service
from ventu_lite.options import CANNOT_LISTEN, CRASHED, WRONG_USAGE

ECHO = """
from ventu_lite import Service

service = Service({name!r})

@service.infer
def echo(item: str) -> str:
    return item
"""

# Says in which order things happen; a batch waits until a file appears.
SLOW = """
import os, sys, time
from ventu_lite import Service

service = Service("slow")

@service.setup
def load() -> None:
    print("set-up begins", flush=True)
    while os.path.exists("wait_in_setup"):
        time.sleep(0.01)
    if os.path.exists("fail_in_setup"):
        raise OSError("no weights")

@service.infer(batch=True)
def infer(batch: list[str]) -> list[str]:
    print("batch begins", flush=True)
    while os.path.exists("wait_in_batch"):
        time.sleep(0.01)
    if "raise" in batch:
        raise ValueError("what a secret")
    return batch

app = service.app
"""

WORKER = ["worker", "--unix", "nobody.socket"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty directory, short enough for a Unix socket in it."""
    with short_directory() as path:
        yield path


@pytest.fixture
def invoke(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Invoke"]:
    """Run commands in ``directory`` and in this process; put what they change back."""
    kept, modules = dict(os.environ), set(sys.modules)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(directory)
    for name in kept:
        if re.match("FLASK_|VENTU_", name):
            monkeypatch.delenv(name)
    yield Invoke(directory)
    os.environ.clear()
    os.environ.update(kept)
    for name in set(sys.modules) - modules:
        path = getattr(sys.modules[name], "__file__", None) or ""
        if path == str(SAMPLE) or path.startswith(str(directory)):
            del sys.modules[name]


class Invoke:
    """Writes files and runs commands beside them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def file(self, name: str, text: str) -> None:
        (self.directory / name).write_text(textwrap.dedent(text))

    def __call__(self, *args: str, env: Mapping[str, str | None] | None = None) -> Result:
        return CliRunner().invoke(group, args, env=env, prog_name="python -m ventu_lite")


def found(result: Result) -> str:
    """Return the name of the service that a command got as far as looking for a batching service.

    The command ends at an unknown name of a service, whose message names those that are there.
    """
    assert result.exit_code == WRONG_USAGE, result.output
    match = re.search(r"holds no service 'none'; it has (.*)", result.output)
    assert match is not None, result.output
    return match[1].strip("'")


NONE = [*WORKER, "--service", "none"]


# ----------------------------------------------------------------------------- finding the app


@pytest.mark.parametrize(
    ("file", "last_line", "args"),
    [
        pytest.param("app.py", "app = service.app", [], id="app.py"),
        pytest.param("wsgi.py", "app = service.app", [], id="wsgi.py"),
        pytest.param("mine.py", "app = service.app", ["--app", "mine"], id="module"),
        pytest.param("mine.py", "app = service.app", ["-A", "mine.py"], id="file"),
        pytest.param("mine.py", "other = service.app", ["--app", "mine:other"], id="name"),
        pytest.param("mine.py", "application = service.app", ["--app", "mine"], id="application"),
        pytest.param("mine.py", "def create_app(): return service.app", ["-A", "mine"], id="fn"),
        pytest.param(
            "mine.py", "def make(n): return service.app", ["-A", "mine:make(1)"], id="fn()"
        ),
    ],
)
def test_an_app_is_found_as_flask_finds_it(
    invoke: Invoke, file: str, last_line: str, args: list[str]
) -> None:
    invoke.file(file, ECHO.format(name="here") + last_line)
    assert found(invoke(*args, *NONE)) == "here"


def test_flask_app_names_it(invoke: Invoke) -> None:
    invoke.file("mine.py", ECHO.format(name="here") + "app = service.app")
    assert found(invoke(*NONE, env={"FLASK_APP": "mine"})) == "here"


def test_the_file_flaskenv_names_it(invoke: Invoke) -> None:
    invoke.file("mine.py", ECHO.format(name="here") + "app = service.app")
    invoke.file(".flaskenv", "FLASK_APP=mine")
    assert found(invoke(*NONE)) == "here"


def test_a_service_on_a_users_own_app_is_found(invoke: Invoke) -> None:
    lines = "from flask import Flask\napp = Flask('own')\napp.register_blueprint(service.blueprint)"
    invoke.file("app.py", ECHO.format(name="here") + lines)
    assert found(invoke(*NONE)) == "here"


def test_an_unguarded_call_that_runs_something_does_not_block(invoke: Invoke) -> None:
    calls = "service.run_unix()\nservice.run_tcp('h', 1)\nservice.run_http()\napp = service.app"
    invoke.file("app.py", ECHO.format(name="here") + calls)
    assert found(invoke(*NONE)) == "here"


# ------------------------------------------------------------------------------ what is refused


def refused(result: Result) -> str:
    """Return the one line that a command says before it exits with 2."""
    assert result.exit_code == WRONG_USAGE, (result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.output.startswith("Error: ")
    return result.output.removeprefix("Error: ").rstrip("\n")


@pytest.mark.parametrize("args", [[], ["--app", "nothing"]])
def test_no_app_is_told_with_a_way_out(invoke: Invoke, args: list[str]) -> None:
    said = refused(invoke(*args, *WORKER))
    assert re.match("Could not (locate a Flask application|import 'nothing')", said)
    assert "`python -m ventu_lite --app FILE.py ...`" in said


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("nothing.py", "{here} has no nothing.py"),
        ("ap.py", "{here} has no ap.py; did you mean app.py?"),
        ("ap.py:app", "{here} has no ap.py; did you mean app.py?"),
        ("samples/cat.py", "{here}/samples has no cat.py; did you mean cats.py?"),
        ("samples/cat", "{here}/samples has no cat; did you mean cats.py?"),
        ("{here}/sample/cats.py", "{here} has no sample; did you mean samples?"),
        ("./sample.cats", "{here} has no sample.cats; did you mean samples?"),
        ("samples/notes.py", "{here}/samples has no notes.py"),  # only the suffix is alike
        ("samples/[a-z]ats", "{here}/samples has no [a-z]ats"),
        # Flask would take the app.py of this directory.
        ("none/app.py:create(a='b')", "{here} has no none"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_those_that_are(
    invoke: Invoke, app: str, said: str
) -> None:
    here = os.getcwd()
    os.mkdir("samples")
    for file in ("app.py", "samples/cats.py", "samples/notes.txt"):
        invoke.file(file, ECHO.format(name="here") + "app = service.app")
    app = app.format(here=here)
    assert refused(invoke("--app", app, *WORKER)) == (
        f"cannot find the app {app}: {said.format(here=here)}"
    )


@pytest.mark.parametrize("app", ["samples/cats", "samples/cats.py", "samples.cats", "samples"])
def test_a_file_may_be_named_in_every_way_of_flask(invoke: Invoke, app: str) -> None:
    os.mkdir("samples")
    for file in ("samples/__init__.py", "samples/cats.py"):
        invoke.file(file, ECHO.format(name="here") + "app = service.app")
    assert found(invoke("--app", app, *NONE)) == "here"


@pytest.mark.parametrize("app", ["src/parts.lions", "src/parts.lions:app", "./src/parts.lions"])
def test_a_module_of_a_package_in_a_folder_may_be_named(invoke: Invoke, app: str) -> None:
    os.makedirs("src/parts")
    for file in ("src/parts/__init__.py", "src/parts/lions.py"):
        invoke.file(file, ECHO.format(name="here") + "app = service.app")
    assert found(invoke("--app", app, *NONE)) == "here"


def test_a_file_without_its_source_may_be_named(invoke: Invoke) -> None:
    os.mkdir("src")
    invoke.file("src/tigers.py", ECHO.format(name="here") + "app = service.app")
    py_compile.compile("src/tigers.py", "src/tigers.pyc")
    os.remove("src/tigers.py")
    assert found(invoke("--app", "src/tigers", *NONE)) == "here"


@pytest.mark.parametrize("app", ["mine", "mine:service", "mine:nothing"])
def test_a_service_without_an_app_is_told_which_line_is_missing(invoke: Invoke, app: str) -> None:
    invoke.file("mine.py", ECHO.format(name="here"))
    said = refused(invoke("--app", app, *WORKER))
    assert said.endswith("It needs a line `app = service.app` below the decorated functions.")


def test_an_app_without_a_service_is_told_how_to_get_one(invoke: Invoke) -> None:
    invoke.file("app.py", "from flask import Flask\napp = Flask('plain')")
    assert refused(invoke(*WORKER)) == (
        f"the app in {invoke.directory}/app.py holds no service;"
        " add `app.register_blueprint(service.blueprint)`, or use `app = service.app`"
    )


def two_services() -> Flask:
    app = Flask("both")
    for name in ("cats", "dogs"):
        service = Service(name, request=int, response=int)
        service.infer(lambda item: item)
        app.register_blueprint(service.blueprint, url_prefix=f"/{name}")
    return app


def test_one_of_several_services_has_to_be_chosen() -> None:
    app = two_services()
    with pytest.raises(ServiceNotFound) as caught:
        find_service(app, None)
    assert str(caught.value) == (
        "the app 'both' holds several services: 'cats', 'dogs';"
        " choose one, such as --service 'cats'"
    )
    assert find_service(app, "dogs").service.name == "dogs"


def test_an_unknown_service_is_told_which_there_are() -> None:
    with pytest.raises(ServiceNotFound, match="holds no service 'cows'; it has 'cats', 'dogs'"):
        find_service(two_services(), "cows")


@pytest.mark.parametrize("app", ["two", "two.py", "two:app", "./two.py:app"])
def test_a_service_that_is_not_in_the_app_of_its_file_is_told_how_to_get_there(
    invoke: Invoke, app: str
) -> None:
    invoke.file("two.py", ECHO.format(name="one") + "app = service.app" + ECHO.format(name="other"))
    assert refused(invoke("--app", app, *WORKER, "--service", "other")) == (
        f"the app in {invoke.directory}/two.py holds no service 'other'; it has 'one'. The service"
        " 'other' is in the file, but not in the app: add"
        " `app.register_blueprint(service.blueprint, url_prefix=...)`"
    )
    said = refused(invoke("--app", app, *NONE))
    assert said == f"the app in {invoke.directory}/two.py holds no service 'none'; it has 'one'"


@pytest.mark.parametrize("level", ["info", "debug"])
def test_an_error_inside_the_users_file_keeps_its_traceback(directory: Path, level: str) -> None:
    (directory / "app.py").write_text("def boom():\n    raise KeyError('mine')\n\nboom()\n")
    ended = command(*WORKER, "--log-level", level, cwd=directory)
    assert ended.returncode == CRASHED
    assert ended.stderr.startswith("Traceback (most recent call last)")
    assert f'File "{directory}/app.py", line 2, in boom' in ended.stderr
    assert ended.stderr.endswith("KeyError: 'mine'\n")
    assert ("ventu_lite" in ended.stderr) == (level == "debug")


def test_a_syntax_error_is_shown_without_what_led_to_it(invoke: Invoke) -> None:
    invoke.file("app.py", "def f(:\n")
    result = invoke(*WORKER)
    assert result.exit_code == CRASHED
    assert result.output.startswith(f'  File "{os.path.realpath("app.py")}", line 1\n    def f(:\n')
    assert result.output.endswith("SyntaxError: invalid syntax\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "from ventu_lite import Service\nService('x', timeout=-1)",
            r"\S+/app.py:2: timeout=-1: Input should be greater than 0",
            id="bad setting",
        ),
        pytest.param(
            "from ventu_lite import Service\nService('x', time_out=1)",
            r"\S+/app.py:2: there is no setting 'time_out'. Did you mean 'timeout'\?",
            id="no such setting",
        ),
        pytest.param(
            "from ventu_lite import Service\nService('x', requests=str)",
            r"\S+/app.py:2: there is no setting 'requests'. Did you mean 'request'\?",
            id="nearly a parameter",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.infer(lambda item: item)",
            r"\S+/app.py:9: service 'x' has its infer stage already: echo \(\S+/app.py:\d\)\. .*",
            id="twice",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.infer(bacth=True)",
            r"\S+/app.py:9: infer\(\) has no option 'bacth'\. Did you mean 'batch'\?",
            id="nearly an option",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.infer(threads=2)",
            r"\S+/app.py:9: Service.infer\(\) got an unexpected keyword argument 'threads'\."
            r" It takes these options: batch, max_batch_size, isolate, retry, key\.",
            id="no such option",
        ),
        pytest.param(
            "from ventu_lite import Service\nService(str, int)",
            r"\S+/app.py:2: Service takes its name first, and all else with a keyword:"
            r' Service\("name", request=Request, response=Response\)\.',
            id="schemas without keywords",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.setup(batch=True)",
            r"\S+/app.py:9: Service.setup\(\) got an .* 'batch'. It takes no options.",
            id="no options",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.inferr(len)",
            r"\S+/app.py:9: 'Service' object has no attribute 'inferr'. Did you mean 'infer'\?",
            id="no such method",
        ),
        pytest.param(
            ECHO.format(name="x") + "service.xyz",
            r"\S+/app.py:9: 'Service' object has no attribute 'xyz'.",
            id="nothing like a method",
        ),
        pytest.param(
            "from ventu_lite import Service\n@Service.infer\ndef echo(item): ...",
            r"\S+/app.py:[23]: this needs a service, not the class: .*",
            id="the class",
        ),
        pytest.param(
            "from ventu_lite import Service\nService.infer(batch=True)",
            r"\S+/app.py:2: this needs a service, not the class: .*",
            id="the class, with options",
        ),
        pytest.param(
            "from ventu_lite import Service\napp = Service('x').app",
            r"\S+/app.py:2: service 'x' has no model call. Decorate it: @service.infer, or .*",
            id="no model call",
        ),
        pytest.param(
            "from ventu_lite import Service\n"
            "app = Service('x', request=str, response=int, examples=['a']).app",
            r"\S+/app.py:2: service 'x' has no model call. Decorate it: .* above the line .*",
            id="no model call yet",
        ),
        pytest.param(
            "from ventu_lite import Service\nservice = Service('x')\n"
            "@service.infer(batch=True)\ndef f(texts: str) -> list[int]: ...\napp = service.app",
            r"\S+/app.py:5: .* of f \(\S+\) says str, but a batch function has a list there.*",
            id="no list",
        ),
    ],
)
def test_a_service_that_cannot_be_composed_is_told_in_one_line(
    invoke: Invoke, text: str, said: str
) -> None:
    invoke.file("app.py", text)
    assert re.fullmatch(said, refused(invoke(*WORKER)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "class Service:\n    def load(self, path): ...\nService().load()",
            "TypeError: Service.load() missing 1 required positional argument: 'path'\n",
            id="a class of the same name",
        ),
        pytest.param(
            "class Service:\n    def predict(self): ...\nService().predict(1)",
            "TypeError: Service.predict() takes 1 positional argument but 2 were given\n",
            id="a method of the same name",
        ),
        pytest.param(
            "raise ModuleNotFoundError('pip install foo')",
            "Error: {app}:1: this import of the app fails: pip install foo\n",
            id="an import that says what to do",
        ),
    ],
)
def test_what_only_looks_like_a_misuse_is_told_as_it_is(
    invoke: Invoke, text: str, said: str
) -> None:
    invoke.file("app.py", text)
    output = invoke(*WORKER).output
    assert output.endswith(said.format(app=os.path.realpath("app.py")))


@pytest.mark.parametrize(
    ("lines", "last"),
    [
        pytest.param(
            "", "RegistrationError: service 'bad' has no model call. Decorate it: ", id="no infer"
        ),
        pytest.param(
            "service.infer(len); service.infer(len)",
            "RegistrationError: service 'bad' has its infer stage already: len (given at ",
            id="two infers",
        ),
        pytest.param(
            "Service('worse', timeout=-1, capacity=0)",
            "ConfigError: capacity=0: Input should be greater than or equal to 1; timeout=-1: ",
            id="settings",
        ),
    ],
)
def test_under_flask_run_the_last_line_says_all(directory: Path, lines: str, last: str) -> None:
    """Flask shows the traceback of whatever a file raises; who reads its end must know."""
    made = "from ventu_lite import Service\nservice = Service('bad', request=str, response=int)"
    (directory / "app.py").write_text(f"{made}\n{lines}\napp = service.app\n")
    with Process("-m", "flask", "run", "--port", "0", cwd=directory) as process:
        assert process.wait() == 1
        assert process.lines[-1].startswith(f"ventu_lite.errors.{last}")


def test_a_service_that_is_used_wrongly_has_its_traceback_for_debugging(directory: Path) -> None:
    (directory / "app.py").write_text("from ventu_lite import Service\nService('x', timeout=-1)")
    ended = command("check", cwd=directory, env={"VENTU_LOG_LEVEL": "debug"})
    assert ended.returncode == WRONG_USAGE
    assert ended.stderr.startswith("Traceback (most recent call last)")
    assert "/ventu_lite/service.py" in ended.stderr
    assert re.search(r"\nError: \S+/app.py:2: timeout=-1: .*\n$", ended.stderr)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        pytest.param(
            {"app.py": "import os\nimport nothing_like_it"},
            "{app}:2: the app imports the module 'nothing_like_it', which {python} does not find."
            " Install the package that has it, or correct the name.",
            id="missing",
        ),
        pytest.param(
            {"app.py": "import other_of_mine", "other_of_mine.py": "\nimport nothing_like_it"},
            "{app}:1: the app imports the module 'nothing_like_it', by way of {other}:2, which"
            " {python} does not find. Install the package that has it, or correct the name.",
            id="missing-elsewhere",
        ),
        pytest.param(
            {"app.py": "from ventu_lite import Servise"},
            "{app}:1: this import of the app fails: cannot import name 'Servise' from 'ventu_lite'",
            id="no-such-name",
        ),
    ],
)
def test_an_import_that_fails_is_told_with_the_line_that_asks_for_it(
    invoke: Invoke, files: dict[str, str], said: str
) -> None:
    for name, text in files.items():
        invoke.file(name, text)
    app, other = (os.path.realpath(name) for name in ("app.py", "other_of_mine.py"))
    expected = said.format(app=app, other=other, python=sys.executable)
    assert refused(invoke(*WORKER)).startswith(expected)


@pytest.mark.parametrize("args", [["--app", "mine", *NONE], [*NONE, "--app", "mine"]])
def test_the_app_may_be_named_before_and_after_the_command(invoke: Invoke, args: list[str]) -> None:
    invoke.file("mine.py", ECHO.format(name="here") + "app = service.app")
    assert found(invoke(*args)) == "here"
    invoke.file("other.py", ECHO.format(name="there") + "app = service.app")
    assert found(invoke(*args, "-A", "other")) == "there"


def test_a_variable_that_is_no_setting_is_told_with_the_nearest(
    invoke: Invoke, caplog: pytest.LogCaptureFixture
) -> None:
    invoke.file("app.py", ECHO.format(name="here") + "app = service.app")
    assert "no example" in refused(invoke("check", env={"VENTU_MAX_BATCHSIZE": "3"}))
    said = (
        "VENTU_MAX_BATCHSIZE is ignored: there is no such setting;"
        " did you mean VENTU_MAX_BATCH_SIZE?"
    )
    assert caplog.messages[0] == said


LONG = "x" * 150


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tcp", "nowhere"], "'nowhere' is no HOST:PORT, such as 127.0.0.1:8765 or [::1]:8765"),
        (["--tcp", ""], "'' is no HOST:PORT, such as 127.0.0.1:8765 or [::1]:8765"),
        (["--tcp", "h:65536"], "port 65536 does not exist, expected 0 to 65535"),
        (["--tcp", "h:0"], "--tcp h:0: nobody listens on port 0; which port is it?"),
        (["--unix", ""], "the socket path is empty, expected one such as batching.socket"),
        (
            ["--unix", LONG],
            "the socket path has 150 bytes, a Unix socket allows 107:"
            " choose a shorter one, such as /tmp/batching.socket",
        ),
        (
            ["--max-message", "1"],
            "--max-message='1': Input should be greater than or equal to 1024",
        ),
        (
            ["--max-message", "2GiB"],
            "--max-message='2GiB': Input should be less than 2147483648",
        ),
        (
            ["--max-message", "lots"],
            "--max-message='lots': could not parse value and unit from byte string,"
            " expected a size such as 10MiB",
        ),
    ],
)
def test_a_bad_setting_is_told_in_one_line(invoke: Invoke, args: list[str], said: str) -> None:
    invoke.file("app.py", ECHO.format(name="here") + "app = service.app")
    assert refused(invoke("worker", *args)) == said


@pytest.mark.parametrize(
    ("name", "hint"), [("modle", " Did you mean model.py?"), ("nothing_like_it", "")]
)
def test_a_module_that_is_not_there_is_told_with_the_one_that_is(
    invoke: Invoke, name: str, hint: str
) -> None:
    invoke.file("model.py", ECHO.format(name="here") + "app = service.app")
    result = invoke("--app", name, "worker")
    assert result.exit_code == 2
    assert f"Could not import '{name}'.{hint}\n" in result.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--api-key=x"], "Others could read a secret here: set VENTU_API_KEY in"),
        (["worker", "--worker-secret", "x"], "set VENTU_WORKER_SECRET in the environment."),
        (["batching", "--api-key", "x"], "set VENTU_API_KEY in the environment."),
        (["app.py"], "Name the app with --app: python -m ventu_lite --app app.py serve"),
        (["check", "app.py"], "with --app: python -m ventu_lite --app app.py check"),
        (["serve", "app:app"], "with --app: python -m ventu_lite --app app:app serve"),
        (["batching", "app.py"], "Got unexpected extra argument (app.py)"),
        (["serve", "-w", "2"], "No such option '-w'. Say `serve --workers`."),
        (["worker", "--workers=2"], "or let `serve --workers` start them."),
        (["serve", "2", "3"], "Got unexpected extra argument (2 3)"),
        (["serve", "--debug"], "`flask run --debug` is for that;"),
        (["serve", "-p", "80"], "No such option '-p'. Say --port."),
        (["worker", "--port", "80"], "Clients ask the batching service: say --port there."),
        (["check", "--host=all"], "Clients ask the batching service: say --host there."),
        (["run"], "There are batching, check, serve, worker; on a laptop, `flask run`."),
        (["--nothing"], "No such option '--nothing'."),
        (["serve", "--worker=2"], "No such option"),
    ],
)
def test_what_is_no_option_is_told_where_it_belongs(
    invoke: Invoke, args: list[str], said: str
) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert said in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("VENTU_TIMEOUT=-1", "VENTU_TIMEOUT='-1': Input should be greater than 0"),
        ("VENTU_LOG_FORMAT=xml", "VENTU_LOG_FORMAT='xml': Input should be 'text' or 'json'"),
        (f"VENTU_SOCKET={LONG}", "the socket path has 150 bytes, a Unix socket allows 107: .*"),
    ],
)
def test_a_bad_variable_is_told_in_one_line(invoke: Invoke, variable: str, said: str) -> None:
    invoke.file("app.py", ECHO.format(name="here") + "app = service.app")
    name, _, value = variable.partition("=")
    assert re.fullmatch(said, refused(invoke("worker", env={name: value})))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--unix", "a", "--tcp", "b:1"], "--unix and --tcp exclude each other"),
        (["--metrics-port", "65536"], "65536 is not in the range 0<=x<=65535"),
        (["--metrics-port", "x"], "'x' is not a valid integer."),
        (["--log-level", "loud"], "'loud' is not one of 'debug', 'info', 'warning'"),
        (["--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["--nothing"], "No such option"),
        (["more"], "Got unexpected extra argument"),
    ],
)
def test_wrong_usage_is_told_with_the_help_that_there_is(
    invoke: Invoke, args: list[str], said: str
) -> None:
    result = invoke("worker", *args)
    assert result.exit_code == WRONG_USAGE
    assert said in result.output
    assert "Try 'python -m ventu_lite worker --help' for help." in result.output


def test_an_unknown_command_is_wrong_usage(invoke: Invoke) -> None:
    result = invoke("wroker")
    assert result.exit_code == WRONG_USAGE
    assert "No such command 'wroker'" in result.output


def test_help_is_there_in_short(invoke: Invoke) -> None:
    for args in ([], ["serve"]):
        result = invoke(*args, "-h")
        assert result.exit_code == 0
        assert result.output == invoke(*args, "--help").output


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1"])
def test_an_address_for_metrics_that_cannot_be_had_is_told(invoke: Invoke, host: str) -> None:
    """192.0.2.0/24 is reserved for documentation: no machine has it."""
    invoke.file("app.py", ECHO.format(name="here") + "app = service.app")
    with BatchingPeer(tcp=True) as peer:
        result = invoke("worker", "--metrics-host", host, "--metrics-port", str(peer.port))
    assert result.exit_code == CANNOT_LISTEN
    address = re.escape(f"{host}:{peer.port}")
    reason = "(Address already in use|Cannot assign requested address)"
    assert re.fullmatch(f"Error: cannot serve metrics on {address}: {reason}\n", result.output)


# -------------------------------------------------------------------------------------- the help


@pytest.mark.parametrize("args", [[], ["worker"]])
def test_help_ends_with_commands_that_are_right(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    said = invoke(*args, "--help").output
    examples = re.findall(r"^ +((?:python -m ventu_lite|flask) .*)$", said, re.MULTILINE)
    assert len(examples) >= 2
    monkeypatch.chdir(ROOT)
    for example in examples:
        words = shlex.split(example)
        if words[0] == "flask":
            assert CliRunner().invoke(flask_cli, [*words[1:], "--help"]).exit_code == 0
        elif "batching" in words:
            assert invoke(*words[3:], "--help").exit_code == 0
        else:
            # In a process of its own: `serve` says where metrics are before it loads the file.
            ended = command(*words[3:], "--service", "none", env={"FLASK_APP": str(SAMPLE)})
            assert ended.returncode == WRONG_USAGE
            assert "holds no service 'none'; it has 'sentiment'" in ended.stderr


def test_the_version_is_told(invoke: Invoke) -> None:
    result = invoke("--version")
    assert (result.exit_code, result.output) == (
        0,
        f"ventu_lite, version {version('ventu-lite')}\n",
    )


def test_the_script_of_the_package_is_the_module() -> None:
    (script,) = entry_points(group="console_scripts", name="ventu_lite")
    assert script.load() is __main__.main
    assert command("--version").stdout.startswith("ventu_lite, version ")


def test_the_end_does_not_look_through_all_objects(directory: Path) -> None:
    """What it promised is done first."""
    (directory / "app.py").write_text(
        ECHO.format(name="last")
        + """
import atexit, os, sys

service = Service("last", examples=["a"])
service.add_stage("infer", echo)
service.add_stage("teardown", lambda: print("torn down", end=" "))
atexit.register(print, "at exit", end=" ")
app = service.app

class Last:
    def __del__(self, write=os.write):
        write(1, b"looked through")

sys.last = Last()
"""
    )
    done = command("--app", "app.py", "check", cwd=directory)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "torn down at exit ")


# --------------------------------------------------------------------------------- a real worker


def slow_worker(directory: Path, *options: str, **env: str) -> Process:
    (directory / "app.py").write_text(SLOW)
    return worker("app.py", *options, cwd=directory, env=env)


def test_a_worker_waits_for_its_batching_service_and_for_the_next_one(directory: Path) -> None:
    at = f"unix:{directory}/batching.socket"
    with slow_worker(directory, "--unix", "batching.socket") as process:
        process.wait_for(
            f"cannot connect to {at}: No such file or directory "
            rf"\(is `python -m ventu_lite batching --unix {directory}/batching.socket` running\?\);"
            " trying again in 0.1 s, then again and again, at most 5 s apart"
        )
        for count in (1, 2):
            with BatchingPeer() as peer:
                assert peer.unix is not None
                (directory / "batching.socket").symlink_to(peer.unix)
                assert peer.submit([b'"x"'], timeout=TIMEOUT) == [(200, b'"x"')]
            process.wait_for(f"lost {at}: .*; trying again in", count=count)
            (directory / "batching.socket").unlink()
        assert process.stop() == 0
        assert process.lines[-1].endswith("stopped")


def test_a_worker_that_waits_for_its_batching_service_stops_at_once(directory: Path) -> None:
    options = ("--unix", "nobody.socket", "--log-level", "debug")
    with slow_worker(directory, *options) as process:
        process.wait_for("trying again in 0.8 s")
        began_at = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - began_at < 30


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_leaves_when_it_is_told_to(directory: Path, signum: int) -> None:
    with BatchingPeer(tcp=True) as peer:
        with slow_worker(directory, "--tcp", f"127.0.0.1:{peer.port}") as process:
            peer.wait_for_workers(1, timeout=TIMEOUT)
            process.signal(signum)
            assert process.wait() == 0
        assert not peer.faults


def test_a_busy_worker_answers_its_batch_and_says_bye(directory: Path) -> None:
    gate = directory / "wait_in_batch"
    gate.touch()
    with BatchingPeer() as peer, slow_worker(directory, "--unix", str(peer.unix)) as process:
        with ThreadPoolExecutor() as pool:
            answers = pool.submit(peer.submit, [b'"x"', b'"y"'], TIMEOUT)
            process.wait_for("batch begins")
            process.signal(signal.SIGTERM)
            gate.unlink()
            assert answers.result() == [(200, b'"x"'), (200, b'"y"')]
        assert process.wait() == 0
        assert peer.results[-1].bye


def test_a_second_signal_kills_a_worker_that_hangs(directory: Path) -> None:
    (directory / "wait_in_batch").touch()
    with BatchingPeer() as peer, slow_worker(directory, "--unix", str(peer.unix)) as process:
        with ThreadPoolExecutor() as pool:
            answers = pool.submit(peer.submit, [b'"x"'], TIMEOUT)
            process.wait_for("batch begins")
            # Two pending signals of a kind are one, so the second goes out until it has worked.
            while process.is_alive:
                process.signal(signal.SIGTERM)
                time.sleep(0.05)  # between two signals
            assert process.wait() == -signal.SIGTERM
            (directory / "wait_in_batch").unlink()
            with slow_worker(directory, "--unix", str(peer.unix)):  # takes the job over
                assert answers.result() == [(200, b'"x"')]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_worker_in_its_set_up(directory: Path, signum: int) -> None:
    (directory / "wait_in_setup").touch()
    with BatchingPeer() as peer, slow_worker(directory, "--unix", str(peer.unix)) as process:
        process.wait_for("set-up begins")
        process.signal(signum)
        assert process.wait() == 0
        assert peer.connections == 0


def test_a_failing_set_up_ends_a_worker_with_its_traceback(directory: Path) -> None:
    (directory / "fail_in_setup").touch()
    with BatchingPeer() as peer, slow_worker(directory, "--unix", str(peer.unix)) as process:
        assert process.wait() == CRASHED
        assert process.lines[-1] == "  OSError: no weights"
        process.wait_for("ERROR .*: the worker ends")
        assert peer.connections == 0


def test_a_set_up_that_exits_is_no_success(directory: Path) -> None:
    text = ECHO.format(name="x") + "import sys\nservice.setup(lambda: sys.exit(0))\n"
    (directory / "app.py").write_text(text + "app = service.app\n")
    with worker("app", cwd=directory) as process:
        assert process.wait() == CRASHED
        process.wait_for("ERROR .*: the worker ends")


def test_a_failing_warm_up_ends_a_worker_with_its_traceback(directory: Path) -> None:
    text = """
    from ventu_lite import Service

    service = Service("x", examples=[1])

    @service.infer
    def infer(item: int) -> int:
        raise OSError("no device")

    app = service.app
    """
    (directory / "app.py").write_text(textwrap.dedent(text))
    with worker("app", cwd=directory) as process:
        assert process.wait() == CRASHED
        process.wait_for("OSError: no device")
        process.wait_for("warm-up with example 1 failed")


def test_json_logs_are_one_object_a_line_and_show_no_payload(directory: Path) -> None:
    options = ("--log-format", "json", "--log-level", "debug")
    with BatchingPeer() as peer:
        with slow_worker(directory, "--unix", str(peer.unix), *options) as process:
            answers = peer.submit([b'"raise"', b'"fine"', b"my secret"], timeout=TIMEOUT)
            assert [status for status, _ in answers] == [500, 200, 400]
            assert process.stop() == 0
    said = [line for line in process.lines if line not in ("set-up begins", "batch begins")]
    records = [json.loads(line) for line in said]
    assert all(set(record) >= {"time", "level", "logger", "message"} for record in records)
    (error,) = [record for record in records if record["level"] == "error"]
    failed = [id for id, status in peer.results[0].rejected.items() if status == 500]
    assert error["job_id"] == failed
    assert re.fullmatch(
        rf"job {failed[0]} failed: ValueError: what a secret \(\S+\.py:\d+\)", error["message"]
    )
    assert error["traceback"].endswith("ValueError: what a secret")
    assert "my secret" not in process.output


def test_the_operators_log_format_beats_that_of_the_users_file(directory: Path) -> None:
    first = "import logging\nlogging.basicConfig(format='mine: %(message)s')\n"
    (directory / "app.py").write_text(first + ECHO.format(name="x") + "app = service.app\n")
    for env, expected in (({}, "mine: "), ({"VENTU_LOG_FORMAT": "json"}, "{")):
        with worker("app", cwd=directory, env=env) as process:
            process.wait_for("trying again")
            assert process.stop() == 0
        assert all(line.startswith(expected) for line in process.lines)


def test_metrics_of_a_worker_are_served(directory: Path) -> None:
    with BatchingPeer() as peer:
        options = ("--unix", str(peer.unix), "--metrics-port", "0")
        with slow_worker(directory, *options) as process:
            port = int(process.wait_for(r"metrics on http://127.0.0.1:(\d+)/metrics")[1])
            peer.submit([b'"a"', b'"b"', b"?"], timeout=TIMEOUT)
            with Client(port) as client:
                text = client.get("/metrics").body.decode()
            assert 'ventu_workers{protocol="unix",service="slow"} 1.0' in text
            assert 'ventu_batch_size_sum{service="slow"} 2.0' in text
            assert 'ventu_rejected_total{reason="invalid",service="slow"} 1.0' in text


def test_a_worker_can_be_probed(directory: Path) -> None:
    def asked(client: Client, *, until: str) -> tuple[int, str]:
        """Return what ``/readyz`` says, once it says why."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = client.get("/readyz")
            said = json.loads(answer.body)
            if until in said.get("detail", said["status"]) or time.monotonic() > deadline:
                return answer.status, said.get("detail", said["status"])
            time.sleep(0.01)

    (directory / "wait_in_setup").touch()
    with slow_worker(directory, "--unix", "batching.socket", "--metrics-port", "0") as process:
        port = int(process.wait_for(r"metrics on http://127.0.0.1:(\d+)/metrics")[1])
        with Client(port) as client:
            process.wait_for("set-up begins")
            running = (503, "set-up and warm-up are still running")
            assert asked(client, until="running") == running
            assert client.get("/livez").status == 200
            (directory / "wait_in_setup").unlink()
            at = f"unix:{directory}/batching.socket"
            alone = (503, f"not connected to {at}, or not accepted there yet")
            assert asked(client, until="not connected") == alone
            with BatchingPeer() as peer:
                assert peer.unix is not None
                (directory / "batching.socket").symlink_to(peer.unix)
                assert asked(client, until="ready") == (200, "ready")
            assert asked(client, until="not connected") == alone
            assert client.get("/livez").status == 200
            assert process.stop() == 0


def test_a_worker_proves_the_secret_that_its_environment_holds(directory: Path) -> None:
    with BatchingPeer(secret="hush") as peer:
        with slow_worker(directory, "--unix", str(peer.unix), VENTU_WORKER_SECRET="hush"):
            assert peer.submit([b'"x"'], timeout=TIMEOUT) == [(200, b'"x"')]
        with slow_worker(
            directory, "--unix", str(peer.unix), VENTU_WORKER_SECRET="loud"
        ) as process:
            process.wait_for("check VENTU_WORKER_SECRET")
    assert "hush" not in process.output and "loud" not in process.output


def test_a_worker_imports_only_what_it_needs(directory: Path) -> None:
    """The plugins of ``flask``, flasgger among them, cost as much as all the rest."""
    (directory / "app.py").write_text(SLOW)
    arguments = ("-X", "importtime", "-m", "ventu_lite", "worker", "--unix", "nobody.socket")
    with Process(*arguments, cwd=directory) as process:
        process.wait_for("trying again")
        assert process.stop() == 0
    imported = set(re.findall(r"\| +([a-z_]+)", process.output))
    assert {"flask", "pydantic", "ventu_lite"} <= imported
    assert not {"flasgger", "yaml", "jsonschema", "mistune", "numpy", "unittest"} & imported
