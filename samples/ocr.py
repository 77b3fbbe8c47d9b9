"""Read a line of text in a picture, with the recogniser of RapidOCR.

In a clone, install with `pip install -e '.[ocr]'`, start with
`flask --app samples/ocr.py run`, then ask:
`python samples/ocr_client.py`, which posts `line.png`, or the PNG and JPEG files that you name.

Pictures travel as they are, in msgpack: `{"image": b"..."}`. Those of about the same shape share a
call, so that none is padded to several times its width.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import abort
from pydantic import BaseModel, Field

from ventu_lite import Service

if TYPE_CHECKING:
    import numpy as np

MOST_PIXELS = 4_000_000  # a small file may hold a picture that fills the memory
HEIGHT = 48  # of the pictures that the model was trained with
# What warms the model up, and what /health runs.
PICTURES = [Path(__file__).parent / name for name in ("line.png", "second_line.png")]


class Request(BaseModel):
    image: bytes = Field(max_length=8_000_000, description="A PNG or JPEG with one line of text")


class Line(BaseModel):
    text: str
    confidence: float = Field(ge=0, le=1)


@dataclass
class Picture:
    pixels: "np.ndarray[Any, Any]"  # height, width, 3 colours

    @property
    def width(self) -> int:
        """That of the picture once it is as high as the model wants it."""
        height, width = map(int, self.pixels.shape[:2])
        return math.ceil(HEIGHT * width / height)


examples = [{"image": picture.read_bytes()} for picture in PICTURES]
service = Service("ocr", codec="msgpack", timeout=30, examples=examples)
recogniser: Any = None


@service.setup
def load() -> None:
    global recogniser
    from rapidocr_onnxruntime import RapidOCR

    recogniser = RapidOCR().text_rec


@service.preprocess
def decode(request: Request) -> Picture:
    import io

    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(request.image), formats=["PNG", "JPEG"])
        if image.width * image.height > MOST_PIXELS:
            abort(422, f"a picture of more than {MOST_PIXELS} pixels")
        if image.width > 100 * image.height:
            abort(422, "this picture is too wide for its height: cut it into pieces")
        pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError):
        abort(422, "this is no PNG or JPEG that can be read")
    return Picture(pixels[:, :, ::-1])  # the model was trained with blue first


def by_width(picture: Picture) -> int:
    """Return what pictures have in common that may share a call: the width, by steps of 160."""
    return math.ceil(picture.width / 160)


@service.infer(batch=True, max_batch_size=16, key=by_width)
def read(batch: list[Picture]) -> list[Line]:
    recogniser.rec_batch_num = len(batch)
    lines, _ = recogniser([picture.pixels for picture in batch])
    return [Line(text=text.strip(), confidence=min(1.0, float(score))) for text, score in lines]


app = service.app
