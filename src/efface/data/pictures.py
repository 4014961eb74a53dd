"""Pictures and texts as content: open one safely, give it a key, make it small.

A picture is a PIL image, encoded bytes, a path, or the pair `{"bytes": ..., "path": ...}` of the datasets library (with
bytes, the path is only its name).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import struct
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from efface.errors import RequestError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are decoded; others of Pillow start foreign programs or are rarely fuzzed."""


def _formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def picture_name(value: Any) -> str | None:
    """The path or name of a picture, where it has one."""
    if isinstance(value, dict):
        return str(value["path"]) if value.get("path") else None
    return str(value) if isinstance(value, (str, Path)) else None


def _where(place: str, value: Any) -> str:
    name = picture_name(value)
    return f"{place} ('{name}')" if name and name not in place else place


@contextlib.contextmanager
def _decoding(place: str) -> Iterator[None]:
    """Pillow's errors inside this block become one line that names the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # odd metadata of a sound picture
            yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise RequestError(f"{place}: more pixels than are safe to decode", f"at most {limit}",
                           "make it smaller, or drop it") from error  # fmt: skip
    except UnidentifiedImageError as error:
        raise RequestError(f"{place}: not a picture", f"one of {', '.join(FORMATS)}", "replace or drop it") from error
    except FileNotFoundError as error:
        raise RequestError(f"{place}: no such file", "a picture", "check the path") from error
    except (IsADirectoryError, PermissionError) as error:
        raise RequestError(f"{place}: {error.strerror}", "a picture that can be read", "check the path") from error
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError, OverflowError) as error:
        said = " ".join(str(error).split())[:120] or type(error).__name__
        raise RequestError(f"{place}: a broken picture ({said})", "a whole one", "replace or drop it") from error


def _stream(value: Any, place: str) -> Any:
    """What Pillow opens: a path, or a stream of the bytes."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return io.BytesIO(value)
    if isinstance(value, (str, Path)) and str(value):
        return Path(value).expanduser()
    raise RequestError(f"{place}: {type(value).__name__}", "a picture, its bytes or its path", "fill or drop it")


def look_at_picture(value: Any, *, place: str = "picture") -> None:
    """Check that a picture is there, of a known format and of a safe size; its pixels are not decoded.

    Raises:
        RequestError: one line that names the picture.
    """
    place = _where(place, value)
    if not isinstance(value, Image.Image):
        with _decoding(place), Image.open(_stream(value, place), formats=_formats()):
            pass


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Grey values of 16 bits as 8 bits; Pillow itself would cut them off at 255."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG"):
        values = np.asarray(picture, dtype=np.float64) / 257
        return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return picture


def open_picture(value: Any, *, place: str = "picture") -> Image.Image:
    """A picture in RGB: upright (EXIF), transparency on white, the first frame of an animation.

    Args:
        value: a PIL image, bytes, a path, or `{"bytes", "path"}`.
        place: what to call it in an error.

    Raises:
        RequestError: missing, truncated, no picture, or so large that decoding it is unsafe.
    """
    place = _where(place, value)
    with _decoding(place):
        if isinstance(value, Image.Image):
            return _rgb(value)
        with Image.open(_stream(value, place), formats=_formats()) as opened:
            opened.load()
            return _rgb(opened)


def _rgb(picture: Image.Image) -> Image.Image:
    """Own pixels in RGB, whatever the mode was."""
    if picture.getexif().get(0x0112, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    picture = _eight_bit(picture)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    found = picture.convert("RGB")
    return found.copy() if found is picture else found


def picture_key(value: Any) -> str:
    """SHA-256 of a picture's content, as hex: of the encoded bytes, or of the pixels of a PIL image.

    Equal keys mean equal pictures; one picture in two encodings has two keys (nothing is decoded here).

    Raises:
        RequestError: no picture, or a file that cannot be read.
    """
    if isinstance(value, Image.Image):
        return hashlib.sha256(f"{value.mode}|{value.size}|".encode() + value.tobytes()).hexdigest()
    place = _where("picture", value)
    with _decoding(place):
        stream = _stream(value, place)
        return hashlib.sha256(stream.read_bytes() if isinstance(stream, Path) else stream.getbuffer()).hexdigest()


def text_key(text: str) -> str:
    """SHA-256 of a text's content, as hex: Unicode in NFC, every run of white space one space."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode("utf-8")).hexdigest()


def thumbnail(value: Any, side: int = 96) -> str:
    """The picture as a PNG of at most `side` pixels a side, in base64; never enlarged.

    Raises:
        RequestError: see `open_picture`.
    """
    small = open_picture(value)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
