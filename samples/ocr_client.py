"""Post pictures with one line of text each to `samples/ocr.py`, and print what they say.

`python samples/ocr_client.py [picture.png ...] [--url http://localhost:5000]`
"""

import argparse
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgpack

LINE = Path(__file__).parent / "line.png"


def read(url: str, image: bytes) -> str:
    """Return the text in a picture.

    Raises:
        urllib.error.URLError: There is no answer, or it is no good one.
    """
    asked = urllib.request.Request(
        f"{url.rstrip('/').removesuffix('/inference')}/inference",
        data=msgpack.packb({"image": image}),
        headers={"Content-Type": "application/msgpack"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        line = msgpack.unpackb(answer.read())
    return f"{line['text']}  ({line['confidence']:.0%})"


def main() -> int:
    """Read the pictures that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description="Print the text in pictures.")
    kind = "PNG or JPEG, one line of text each (line.png, beside this file)"
    parser.add_argument("pictures", nargs="*", default=[LINE], type=Path, help=kind)
    parser.add_argument("--url", default="http://localhost:5000", help="where samples/ocr.py runs")
    options = parser.parse_args()
    failed = 0
    for path in options.pictures:
        try:
            print(f"{path.name}: {read(options.url, path.read_bytes())}")
        except urllib.error.HTTPError as exc:
            failed += 1
            detail = msgpack.unpackb(exc.read())["detail"]
            print(f"{path.name}: {exc.code}: {detail}", file=sys.stderr)
        except urllib.error.URLError as exc:
            failed += 1
            hint = f"is samples/ocr.py running at {options.url}?"
            print(f"{path.name}: {exc.reason}; {hint}", file=sys.stderr)
        except OSError as exc:
            failed += 1
            print(f"{path.name}: {exc.strerror}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
