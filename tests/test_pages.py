"""The pages are served from here alone, under any prefix, beside whatever else the app holds."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from flasgger import Swagger
from flask import Blueprint, Flask
from flask.testing import FlaskClient
from markupsafe import Markup
from pydantic import TypeAdapter
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import TestResponse

from ventu_lite import Service
from ventu_lite.apidoc import add_pages
from ventu_lite.home import Endpoint, home
from ventu_lite.openapi import document

PAGES = ["/apidoc/swagger", "/apidoc/redoc"]
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
ENDPOINTS = [
    Endpoint("POST", "/inference", "Run the model"),
    Endpoint("GET", "/health", "Run the <example>"),
]


def describe(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda server: document(
        name=name,
        version="1",
        request=TypeAdapter(int),
        response=TypeAdapter(int),
        media_types=["application/json"],
        server=server,
    )


def make_blueprint(name: str = "svc", **options: Any) -> Blueprint:
    blueprint = Blueprint(name, __name__)
    title = options.pop("title", name)
    add_pages(blueprint, title=title, document=describe(name))
    blueprint.add_url_rule(
        "/", "home", lambda: home(ENDPOINTS, title=title, version="1.0", **options)
    )
    return blueprint


def make_client(prefix: str = "", **options: Any) -> FlaskClient:
    app = Flask(__name__)
    app.register_blueprint(make_blueprint(**options), url_prefix=prefix)
    return app.test_client()


def server_of(client: FlaskClient, prefix: str = "", **options: Any) -> str:
    """Return the server that the document names, which must be whole JSON."""
    response = client.get(f"{prefix}/apidoc/openapi.json", **options)
    assert (response.status_code, response.mimetype) == (200, "application/json")
    url: str = response.get_json()["servers"][0]["url"]
    return url


@pytest.mark.parametrize("prefix", ["", "/v1", "/a/b"])
def test_everything_is_below_the_prefix(prefix: str) -> None:
    client = make_client(prefix)

    for path in PAGES:
        page = client.get(prefix + path)
        assert (page.status_code, page.mimetype) == (200, "text/html")
    assert server_of(client, prefix) == (prefix or "/")


def test_server_holds_the_script_root() -> None:
    assert server_of(make_client("/v1"), "/v1", base_url="http://localhost/app") == "/app/v1"


def test_server_holds_the_prefix_that_a_trusted_proxy_names() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_blueprint())
    app.wsgi_app = ProxyFix(app.wsgi_app, x_prefix=1)  # type: ignore[method-assign]  # as Flask says

    for prefix in ("/a", "/b"):
        assert server_of(app.test_client(), headers={"X-Forwarded-Prefix": prefix}) == prefix


def test_server_is_quoted() -> None:
    assert server_of(make_client("/ä b"), "/ä b") == "/%C3%A4%20b"


def test_services_of_one_app_have_documents_of_their_own() -> None:
    app = Flask(__name__)
    for name in ("cats", "dogs"):
        app.register_blueprint(make_blueprint(name), url_prefix=f"/{name}")
    app.register_blueprint(make_blueprint("cats"), url_prefix="/again", name="again")
    client = app.test_client()

    titles = {
        prefix: client.get(f"/{prefix}/apidoc/openapi.json").get_json()["info"]["title"]
        for prefix in ("cats", "dogs", "again")
    }
    assert titles == {"cats": "cats", "dogs": "dogs", "again": "cats"}
    assert server_of(client, "/again") == "/again"


def test_blueprint_may_be_nested() -> None:
    app, parent = Flask(__name__), Blueprint("parent", __name__, url_prefix="/outer")
    parent.register_blueprint(make_blueprint(), url_prefix="/inner")
    app.register_blueprint(parent)

    assert server_of(app.test_client(), "/outer/inner") == "/outer/inner"


def test_document_is_made_once_for_each_place() -> None:
    places: list[str] = []

    def describe_and_count(place: str) -> dict[str, Any]:
        places.append(place)
        return describe("svc")(place)

    blueprint, app = Blueprint("svc", __name__), Flask(__name__)
    app.debug = True  # flasgger itself starts again each time
    add_pages(blueprint, title="svc", document=describe_and_count)
    app.register_blueprint(blueprint)
    for base_url in ("http://localhost/a", "http://localhost/b", "http://localhost/a"):
        server_of(app.test_client(), base_url=base_url)

    assert places == ["/a", "/b"]


@pytest.mark.parametrize("path", ["/apidoc", "/apidoc/"])
def test_short_address_leads_to_swagger(path: str) -> None:
    """The way is relative, which the test client cannot follow."""
    response = make_client("/v1").get(f"/v1{path}")

    assert response.status_code == 302
    assert urljoin(f"/v1{path}", response.location) == "/v1/apidoc/swagger"


@pytest.mark.parametrize("path", PAGES)
def test_page_names_no_other_host(path: str) -> None:
    assert not re.findall(r"(?:https?:)?//[^\s'\"]+", without_icon(make_client().get(path).text))


def without_icon(page: str) -> str:
    """The icon is a ``data:`` URI; the address in it is the name of SVG."""
    return re.sub(r'<link rel="icon"[^>]*>', "", page)


@pytest.mark.parametrize("path", PAGES)
def test_every_part_of_a_page_is_served(path: str) -> None:
    client = make_client("/v1")
    parts = re.findall(r'(?:src|href|spec-url)="([^":]+)"', client.get(f"/v1{path}").text)

    assert len(parts) >= 2
    for part in parts:
        with client.get(f"/v1/apidoc/{part}") as response:
            assert response.status_code == 200


@pytest.mark.parametrize("path", PAGES)
def test_page_runs_no_script_but_those_of_this_server(path: str) -> None:
    response = make_client().get(path)
    policy = dict(
        directive.split(None, 1)
        for directive in response.headers["Content-Security-Policy"].split("; ")
    )

    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert re.findall(r"<script(?! src=)", response.text) == []


@pytest.mark.parametrize(
    "path", ["/", "/apidoc/openapi.json", "/apidoc/static/swagger-ui.css", *PAGES]
)
def test_types_are_not_guessed_and_nobody_is_told(path: str) -> None:
    with make_client().get(path) as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", PAGES)
def test_title_cannot_leave_its_place(path: str) -> None:
    text = make_client(title="</title><script>alert(1)</script>{0}").get(path).text

    assert "<title>&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;{0}</title>" in text


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-start.js", "redoc.standalone.js"])
def test_asset_is_kept_and_asked_for_again_by_its_tag(name: str) -> None:
    client = make_client()
    with client.get(f"/apidoc/static/{name}") as first:
        assert first.cache_control.max_age == 3600
        assert not first.cache_control.no_cache
        tag = first.headers["ETag"]
    with client.get(f"/apidoc/static/{name}", headers={"If-None-Match": tag}) as second:
        assert (second.status_code, second.data) == (304, b"")


@pytest.mark.parametrize("path", ["/", "/apidoc/openapi.json", *PAGES])
def test_what_may_change_is_checked_each_time(path: str) -> None:
    client = make_client()
    first = client.get(path)
    second = client.get(path, headers={"If-None-Match": first.headers["ETag"]})

    assert first.cache_control.no_cache
    assert (second.status_code, second.data) == (304, b"")
    # Every server says it; in addition to ours it would be there twice.
    assert "Date" not in first.headers and "Date" not in second.headers


@pytest.mark.parametrize(
    "name", ["index.html", "..%2f__init__.py", "%2fetc%2fpasswd", "swagger-ui-bundle.js.map", ""]
)
def test_nothing_but_the_assets_is_served(name: str) -> None:
    assert make_client().get(f"/apidoc/static/{name}").status_code == 404


def test_redoc_asks_no_other_host_for_its_logo() -> None:
    script = make_client().get("/apidoc/static/redoc.standalone.js").data

    assert b"cdn.redoc" not in script
    assert b'"data:image/svg+xml;base64,' in script
    assert b"https://redocly.com/redoc/" in script  # the credit stays


def test_swagger_does_not_obey_the_address_bar() -> None:
    with make_client().get("/apidoc/static/swagger-start.js") as response:
        script = response.get_data(as_text=True)
    assert "queryConfigEnabled: false" in script
    assert "validatorUrl: null" in script


def make_service() -> Service:
    service = Service("numbers", version="2.0", examples=[20, 1])

    @service.infer
    def double(number: int) -> int:
        return 2 * number

    return service


def test_every_endpoint_of_a_service_is_served() -> None:
    client = make_service().app.test_client()
    endpoints = client.get("/").get_json()["endpoints"]

    assert endpoints[0]["path"] == "/inference"
    for endpoint in endpoints:
        response = client.open(endpoint["path"], method=endpoint["method"], json=20)
        assert response.status_code in (200, 503), endpoint  # not ready yet


def test_command_of_a_service_runs_an_inference() -> None:
    client = make_service().app.test_client()
    words = shlex.split(shown_command(home_page(client)).replace("\\\n", ""))
    url, body = words[1], words[words.index("-d") + 1]

    assert url == "http://localhost/inference"
    assert client.post("/inference", data=body, content_type="application/json").get_json() == 40


def test_document_of_a_service_is_below_its_prefix() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_service().blueprint, url_prefix="/v1")
    openapi = app.test_client().get("/v1/apidoc/openapi.json").get_json()

    assert openapi["info"] == {"title": "numbers", "version": "2.0"}
    assert openapi["servers"] == [{"url": "/v1"}]
    content = openapi["paths"]["/inference"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {"type": "integer"}
    assert content["application/json"]["examples"]["example 1"] == {"value": 20}


def test_templates_of_the_user_stay_out_of_ours(tmp_path: Path) -> None:
    """His app may well have a ``home.html`` and a ``page.html``."""
    for name in ("home.html", "page.html", "swagger.html"):
        (tmp_path / name).write_text("his")
    app = Flask(__name__, template_folder=str(tmp_path))
    app.register_blueprint(make_blueprint())
    client = app.test_client()

    assert "swagger-start.js" in client.get("/apidoc/swagger").text
    assert "Served by ventu_lite" in home_page(client).text


@pytest.mark.parametrize("theirs_first", [True, False])
def test_a_flasgger_of_the_user_works_beside_ours(theirs_first: bool) -> None:
    app = Flask(__name__)
    app.config["SWAGGER"] = {"title": "Theirs", "openapi": "2.0", "specs_route": "/docs/"}
    if theirs_first:
        theirs = Swagger(app)
        app.register_blueprint(make_blueprint("ours"), url_prefix="/v1")
    else:
        app.register_blueprint(make_blueprint("ours"), url_prefix="/v1")
        theirs = Swagger(app)
    app.add_url_rule("/route", "route", documented)
    client = app.test_client()

    assert server_of(client, "/v1") == "/v1"
    assert list(client.get("/apispec_1.json").get_json()["paths"]) == ["/route"]
    assert client.get("/docs/").status_code == 200
    assert app.swag is theirs  # type: ignore[attr-defined]  # flasgger puts it there


def documented() -> str:
    """A route of the user.

    ---
    responses: {200: {description: fine}}
    """
    return "fine"


def test_a_bad_docstring_of_the_user_does_no_harm() -> None:
    def bad() -> str:
        """Text.

        ---
        a: b: c
        """
        return ""

    app = Flask(__name__)
    app.register_blueprint(make_blueprint())
    app.add_url_rule("/bad", "bad", bad)

    assert server_of(app.test_client()) == "/"


def test_document_passes_flasgger_unchanged_but_for_the_order() -> None:
    served = make_client().get("/apidoc/openapi.json").get_json()

    assert served == describe("svc")("/")


def test_app_is_left_alone() -> None:
    app = Flask(__name__)
    app.register_blueprint(make_blueprint())
    server_of(app.test_client())

    assert not hasattr(app, "swag")
    assert app.after_request_funcs == {}
    assert list(app.blueprints) == ["svc"]


FLASGGER_IS_LAZY = """
import sys
from flask import Blueprint, Flask
from ventu_lite.apidoc import add_pages
document = {"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": {}, "components": {}}
blueprint, app = Blueprint("svc", __name__), Flask(__name__)
add_pages(blueprint, title="", document=lambda server: document)
app.register_blueprint(blueprint)
client = app.test_client()
assert client.get("/apidoc/swagger").status_code == 200
assert "flasgger" not in sys.modules, "too early"
assert client.get("/apidoc/openapi.json").status_code == 200
assert "flasgger" in sys.modules, "never"
"""


def test_flasgger_is_imported_by_the_first_reader_only() -> None:
    """It takes as long to import as Flask itself, and a worker never needs it."""
    done = subprocess.run(
        [sys.executable, "-c", FLASGGER_IS_LAZY], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json,text/html"])
def test_home_is_json_for_programs(accept: str | None) -> None:
    headers = {"Accept": accept} if accept else {}
    response = make_client("/v1").get("/v1/", headers=headers, base_url="http://localhost/app")

    assert response.get_json() == {
        "name": "svc",
        "version": "1.0",
        "endpoints": [
            {"method": "POST", "path": "/app/v1/inference", "description": "Run the model"},
            {"method": "GET", "path": "/app/v1/health", "description": "Run the <example>"},
        ],
    }
    assert "Accept" in response.vary


def home_page(client: FlaskClient, path: str = "/") -> TestResponse:
    return client.get(path, headers={"Accept": BROWSER})


def test_home_is_a_page_for_browsers() -> None:
    response = home_page(make_client("/v1"), "/v1/")

    assert response.mimetype == "text/html"
    assert '<a href="/v1/health">/v1/health</a>' in response.text
    assert 'href="/v1/inference"' not in response.text  # a link cannot POST
    assert "Run the &lt;example&gt;" in response.text
    assert "Accept" in response.vary
    assert "default-src 'none'; style-src 'sha256-" in response.headers["Content-Security-Policy"]


def test_home_page_names_no_other_host() -> None:
    page = without_icon(home_page(make_client(examples=[1])).text)

    assert set(re.findall(r"https?://[^/\s]+", page)) == {"http://localhost"}


def shown_command(response: TestResponse) -> str:
    match = re.search(r"<pre>(.*?)</pre>", response.text, re.DOTALL)
    assert match is not None
    return Markup(match[1]).unescape()


def test_home_page_offers_a_command_that_a_shell_reads_as_meant() -> None:
    client = make_client("/v1", examples=[{"text": "it's <b> $HOME"}, {"text": "second"}])
    command = shown_command(home_page(client, "/v1/"))

    assert shlex.split(command.replace("\\\n", "")) == [
        *("curl", "http://localhost/v1/inference"),
        *("-H", "Content-Type: application/json"),
        *("-d", '{"text": "it\'s <b> $HOME"}'),
    ]


def test_command_names_the_key_that_is_needed() -> None:
    command = shown_command(home_page(make_client(examples=[1], api_key=True)))

    assert '-H "Authorization: Bearer $API_KEY"' in command


def test_command_for_a_long_example_reads_a_file() -> None:
    command = shown_command(home_page(make_client(examples=["x" * 5000])))

    assert command.endswith("-d @request.json")


def test_without_an_example_there_is_no_command() -> None:
    assert "<pre>" not in home_page(make_client()).text
