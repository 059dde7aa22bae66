"""Images between user code, files, engines and the learner: always as data-URLs in records, never
pickled.

A data-URL is what SGLang takes as `image_data`, and JSON can say it.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def to_data_url(image: Any, folder: Path | None = None) -> str:
    """`image`: a data-URL, a file (relative to `folder`), the bytes of one, {"bytes": ..., "path":
    ...} as Parquet files of images have it, or a PIL image (kept as PNG). Raises ValueError for
    anything else, and for an address: nothing is fetched."""
    if isinstance(image, dict) and (image.get("bytes") or image.get("path")):
        image = image.get("bytes") or image["path"]
    if isinstance(image, str):
        if image.startswith("data:image/"):
            return image
        if "://" in image:
            raise ValueError(
                f"{image:.80}: images are not fetched from addresses; store files or data-URLs"
            )
        path = (folder or Path()) / Path(image).expanduser()
        if not path.is_file():
            raise ValueError(f"{path}: no such image file")
        image = path.read_bytes()
    if isinstance(image, bytes):
        kind = next((name for start, name in _KINDS.items() if image.startswith(start)), None)
        if kind is None:
            raise ValueError("the bytes are no PNG, JPEG, GIF or WebP image")
        return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    if is_pil_image(image):
        out = io.BytesIO()
        image.save(out, "PNG")
        return to_data_url(out.getvalue())
    raise ValueError(
        f"a {type(image).__name__} is no image; expected a data-URL, a file, its bytes, or a PIL"
        " image"
    )


def is_pil_image(value: Any) -> bool:
    """Without importing PIL."""
    return any(
        cls.__module__ == "PIL.Image" and cls.__name__ == "Image" for cls in type(value).__mro__
    )
