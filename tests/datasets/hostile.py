"""Files that mean harm or were harmed, made from scratch."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

NAUGHTY_NAMES = [
    "<img src=x onerror=alert(1)>",
    "=cmd()",
    "@SUM(1+1)*cmd|' 'C0",
    "'; DROP TABLE scores;--",
    '"quoted" and \'quoted\'',
    "line\nbreak\r\n",
    "tab\tand \x07 bell \x1b[31m",
    "back\\slash \\udce9",
    "%s %d %00 ${HOME} $(id) `id`",
    "my.photo.v2",
    "..",
    "-rf",
    "#1 ?x=1&y=2",
    "{a,b}{0..9}",
    " leading and trailing ",
    "é e\u0301 \u200b\u202egnp \ufeff",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "田中さんにあげて下さい",
    "null", "NaN", "CON", "undefined",
    "x" * 180,
    "caf\udce9 \udcff\udcfe",
]  # fmt: skip
"""Stems of file names, in the spirit of the big list of naughty strings; the last is not UTF-8."""


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bit_depth: int, colour_type: int, raw: bytes, extra: bytes = b"") -> bytes:
    """A PNG with these header fields, whatever is behind them; ``extra`` chunks come before the pixels."""
    header = _chunk(b"IHDR", struct.pack(">2I5B", width, height, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(raw)) + _chunk(b"IEND", b"")


def tiff(tags: dict[int, int], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory with long values."""
    entries = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def bombs() -> dict[str, bytes]:
    """Small files that say they are large images, or hold something that unpacks to much."""
    wide = png(60_000, 60_000, 8, 0, b"")
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(wide), 22) + wide
    gif = bytearray(encoded(np.zeros((4, 4), np.uint8), "GIF"))
    frame = gif.rindex(b"\x2c", 0, len(gif) - 4)
    wide_frame = gif[: frame + 5] + struct.pack("<2H", 65_535, 65_535) + gif[frame + 9 :]
    jpeg = bytearray(encoded(np.zeros((8, 8), np.uint8), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">2H", 65_500, 65_500)
    size = {256: 60_000, 257: 60_000, 258: 8, 262: 1, 273: 200, 277: 1}
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    return {
        "wide.png": wide,
        "text.png": png(1, 1, 8, 0, bytes(2), _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9))),
        "screen.gif": bytes(gif[:6] + struct.pack("<2H", 65_535, 65_535) + gif[10:]),
        "frame.gif": bytes(wide_frame),
        "wide.ico": icon,
        "wide.jpg": bytes(jpeg),
        "wide.bmp": struct.pack("<2s3I", b"BM", 54, 0, 54)
        + struct.pack("<3I2H6I", 40, 60_000, 60_000, 1, 24, *[0] * 6),
        "wide.tif": tiff({**size, 259: 1, 278: 60_000, 279: 100}, bytes(100)),
        "packed.tif": tiff({**size, 259: 5, 278: 60_000, 279: 100}, bytes(100)),
        "tile.tif": tiff(
            {256: 16, 257: 16, 258: 8, 259: 5, 262: 1, 277: 1, 322: 60_000, 323: 60_000, 324: 200, 325: 100}, bytes(100)
        ),
        "strip.tif": tiff({256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: 16, 279: 2**32 - 1}),
        "wide.webp": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
        "wide.pgm": b"P5 60000 60000 255\n",
    }


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
