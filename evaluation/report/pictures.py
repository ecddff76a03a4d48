"""The pictures of a report as ``data:`` URIs, small enough for a page of hundreds."""

import base64
import io
from pathlib import Path

from PIL import Image

from pipeline.images import pixels

Picture = Path | bytes | Image.Image | None
"""A picture: a file, encoded bytes or a PIL image; None: there is nothing to show."""

_AS_IT_IS = {"JPEG": "image/jpeg", "PNG": "image/png", "GIF": "image/gif", "WEBP": "image/webp"}
_MOST_BYTES = 24_000
_MOST_PIXELS = 256


def picture_uri(picture: Picture) -> str:
    """A ``data:`` URI: small files of a browser's formats as they are, others as a thumbnail.

    A thumbnail is a JPEG of at most 256 pixels a side, and shows the colours that the models see
    (``pipeline.images``). The URI is empty where there is no picture or it cannot be read: a report
    also shows samples that were left out because they are broken.
    """
    if picture is None:
        return ""
    try:
        if isinstance(picture, Image.Image):
            return _thumbnail(picture)
        content = picture.read_bytes() if isinstance(picture, Path) else picture
        with Image.open(io.BytesIO(content)) as opened:
            mime = _AS_IT_IS.get(opened.format or "")
            if mime and len(content) <= _MOST_BYTES:
                return _uri(mime, content)
            return _thumbnail(opened)
    except Exception:  # no decoder documents which exceptions damaged bytes cause
        return ""


def _thumbnail(image: Image.Image) -> str:
    image.draft("RGB", (_MOST_PIXELS, _MOST_PIXELS))
    small = Image.fromarray(pixels(image).permute(1, 2, 0).numpy())
    small.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return _uri("image/jpeg", content.getvalue())


def _uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
