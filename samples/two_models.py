"""Two services in one Flask app, under two prefixes; one has a metric and a route of its own.

Start with `flask --app samples/two_models.py run`, then ask:
`curl localhost:5000/language/inference -d '{"text": "le chat est sur la table"}'`
`curl localhost:5000/length/inference -d '"four"'`
or open http://localhost:5000, which links to the pages of both.

`serve` runs one of them:
`python -m ventu_lite --app samples/two_models.py serve --service language`
"""

import re
from collections import Counter as Count

from flask import Flask
from prometheus_client import Counter
from pydantic import BaseModel, Field

from ventu_lite import Service

WORDS = {
    "en": {"the", "is", "on", "and", "of", "a", "to", "in"},
    "fr": {"le", "la", "est", "sur", "et", "de", "un", "une"},
    "de": {"der", "die", "das", "ist", "auf", "und", "ein", "eine"},
}


class Text(BaseModel):
    text: str = Field(min_length=1, examples=["le chat est sur la table", "and so it is"])


class Language(BaseModel):
    language: str
    share: float = Field(ge=0, le=1, description="Of the words, those that speak for it")


language = Service("language")
length = Service("length", request=str, response=int, examples=["four", "fourteen"])
# Examples count, too: at the start they run alone and in batches, then for /health.
found = Counter("languages_found", "Texts by language.", ["language"])


@language.infer(batch=True)
def recognise(batch: list[Text]) -> list[Language]:
    return [_recognise(re.findall(r"\w+", item.text.lower())) for item in batch]


@language.postprocess
def count(result: Language) -> Language:
    found.labels(result.language).inc()
    return result


length.infer(len)


def _recognise(words: list[str]) -> Language:
    hits = Count({name: sum(word in known for word in words) for name, known in WORDS.items()})
    name, best = hits.most_common(1)[0]
    return Language(language=name if best else "unknown", share=best / max(1, len(words)))


app = Flask(__name__)
app.register_blueprint(language.blueprint, url_prefix="/language")
app.register_blueprint(length.blueprint, url_prefix="/length")


@app.get("/")
def index() -> str:
    """Link to the pages of both services, whose own home is below their prefix."""
    links = [
        f'<li>{name}: <a href="{name}/">home</a>, <a href="{name}/apidoc/swagger">API</a>,'
        f' <a href="{name}/health">health</a>, <a href="{name}/metrics">metrics</a></li>'
        for name in ("language", "length")
    ]
    return f"<!doctype html><title>Two models</title><ul>{''.join(links)}</ul>"


@app.get("/languages")
def languages() -> list[str]:
    return sorted(WORDS)
