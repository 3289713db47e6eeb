"""Bytes to pixels, with one documented conversion for each kind of image, and a named reason for each refusal.

| what comes in                       | what is kept               | recorded as            |
| ----------------------------------- | -------------------------- | ---------------------- |
| L, RGB (8 bit)                      | as it is                   |                        |
| EXIF orientation                    | turned upright             | ``exif_transposed``    |
| 1 bit                               | L                          | ``bilevel_to_l``       |
| 16 and 32 bit integer grey          | L, divided by 256          | ``16_bit_to_l``        |
| 16 bit colour, 16 bit with alpha    | as 8 bit, divided by 256   | ``16_bit_to_8_bit``    |
| palette, CMYK, YCbCr, LAB, HSV      | RGB                        | ``palette_to_rgb``, ...|
| LA                                  | L, composited on white     | ``alpha_on_white``     |
| RGBA, palette with alpha            | RGB, composited on white   | ``alpha_on_white``     |
| JPEG with further pictures (MPO)    | the first, that viewers show | ``mpo_first``        |
| icon of several sizes (ICO)         | the largest                | ``ico_largest``        |
| animation, pages, floating point    | refused                    | reason in the reject   |

The content decides what a file is, never its name: a PNG called ``.jpg`` is a PNG, a web page called so is a reject.
Only the formats of ``FORMATS`` are tried; Pillow knows others, one of which (EPS) would run a program on the file.
Colour profiles are not applied.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import re
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError, _imaging

from latentprint.tasks.errors import first_line

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Image formats that are read, by Pillow's names."""

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that shards hold as they came, and the names of their members: anything that reads WebDataset knows them."""

LONGEST_HEADER = 1024
"""A file longer than its pixels by more bytes is not kept: what it holds beside the picture would fill the disk."""

MAX_PIXELS = 64 * 2**20
"""Images with more pixels are refused before they are decompressed."""

MAX_BYTES = 512 * 2**20
"""Files with more bytes are refused before they are read; ``MAX_PIXELS`` of uncompressed 16-bit RGB take fewer."""


MOST_SCANS = 100
"""Of a JPEG, thumbnails and further pictures counted too; a progressive one has about ten. Each passes over all pixels,
however few bytes it has: 600 of them took a minute."""

MOST_READS = 2**21
"""Times that Pillow may ask for the next piece of a file: some seconds of work. 64 million pixels take 100,000."""

_START_OF_SCAN = b"\xff\xda"
"""Within a scan's own data 0xFF is followed by 0 or a restart marker, so that this is never part of a picture."""

_LONGEST_REASON = 500
"""Characters of a reason that another library gives."""

_MAGIC = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML or SVG",
    b"<svg": "SVG",
    b"%pdf": "PDF",
    b"%!ps": "PostScript",
    b"pk\3\4": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"8bps": "a Photoshop file",
    b"\x93numpy": "a NumPy array",
    b"par1": "Parquet",
    b"\x7felf": "a program",
    b"version https://git-lfs": "a Git LFS pointer, not the file",
}
"""First bytes, in lower case, of what is often taken for an image."""


def _quieten_pillow() -> None:
    """Refuse bombs, and say nothing: what is wrong with an image goes into its reject, not over the progress bar.

    Set once for the process rather than around each decode, because none of it is a thread's own: the largest image
    (Pillow refuses at twice its limit and warns before), Python warnings, Pillow's logger, and the lines that libtiff
    prints on file descriptor 2. libtiff is reached through the module that is linked to it; a build that hides its
    symbols keeps printing, which is untidy but harmless.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    logging.getLogger("PIL").propagate = False
    pillow = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if hasattr(pillow, name):
            getattr(pillow, name)(None)


_quieten_pillow()


class Rejected(Exception):
    """An input item that cannot be used; ``str()`` is the reason and ``cause`` the exception's type."""

    def __init__(self, reason: str, cause: str = "Rejected") -> None:
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class Picture:
    """Decoded pixels: ``pixels`` uint8, (H, W) in mode ``L`` or (H, W, 3) in mode ``RGB``."""

    pixels: NDArray[np.uint8]
    conversion: str = ""
    """Conversions applied on the way, comma separated, in order."""
    original: bytes | None = field(default=None, repr=False, compare=False)
    """The file that it was decoded from, where that is of a kind in ``KEPT`` and nothing was converted."""

    @property
    def mode(self) -> str:
        return "L" if self.pixels.ndim == 2 else "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def content_hash(self) -> str:
        """128-bit BLAKE2b over (width, height, mode, pixels): the picture's identity, whatever file it came in."""
        header = f"{self.size[0]},{self.size[1]},{self.mode},".encode()
        return hashlib.blake2b(header + self.pixels.tobytes(), digest_size=16).hexdigest()

    def png(self) -> bytes:
        """Lossless PNG; the same pixels give the same bytes."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format="PNG", optimize=False, compress_level=6)
        return buffer.getvalue()

    def file(self) -> bytes:
        """A file with exactly these pixels: the original, or a PNG where there is none or it is longer than pixels."""
        if self.original and len(self.original) <= self.pixels.nbytes + LONGEST_HEADER:
            return self.original
        return self.png()


class _Pieces(io.BytesIO):
    """An image file that ends the decoding which reads it after ``MOST_READS``.

    A limit without a process, a signal or a clock, so that the same file always has the same fate: Pillow reads its
    files piece by piece, between the chunks, comments, directories and runs that an attacker multiplies. What it does
    not reach is a single call of a library, whose time goes with ``MAX_PIXELS``.
    """

    n_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.n_reads += 1
        if self.n_reads > MOST_READS:
            raise Rejected(f"more than {MOST_READS} pieces: too many to decode", "TimeoutError")
        return super().read(size)


def decode(content: bytes, formats: tuple[str, ...] = FORMATS) -> Picture:
    """Decode an image file of one of these ``FORMATS``.

    Raises:
        Rejected: for anything that is not one whole, reasonably sized image.
    """
    if not content:
        raise Rejected("empty file")
    if len(content) > MAX_BYTES:
        raise Rejected(f"{len(content)} bytes: at most {MAX_BYTES} are read")
    try:
        with Image.open(_Pieces(content), formats=formats) as image:
            if image.format in ("JPEG", "MPO") and (n_scans := content.count(_START_OF_SCAN)) > MOST_SCANS:
                raise Rejected(f"{n_scans} scans: at most {MOST_SCANS} are decoded")
            picture = _decode(image)
            is_kept = image.format in KEPT and not picture.conversion
            return replace(picture, original=content) if is_kept else picture
    except Rejected:
        raise
    except MemoryError as error:
        raise Rejected("it takes more memory than there is", type(error).__name__) from error
    except UnidentifiedImageError as error:
        raise Rejected(f"not a readable image{_looks_like(content)}", type(error).__name__) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format and damage
        raise Rejected(in_words(error), type(error).__name__) from error


def in_words(error: Exception) -> str:
    """An exception as a reason: one line, never empty, and the same in every run, so without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", first_line(error))[:_LONGEST_REASON]


def channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) to (C, H, W)."""
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def from_array(pixels: NDArray[np.generic]) -> Picture:
    """A picture from an (H, W), (H, W, 1), (1, H, W), (H, W, 3) or (3, H, W) uint8 array.

    Raises:
        Rejected: for another dtype or shape.
    """
    if pixels.dtype != np.uint8:
        raise Rejected(f"dtype {pixels.dtype}: uint8 pixels are needed")
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise Rejected(f"shape {pixels.shape}: (H, W), (H, W, 1) or (H, W, 3) is needed")
    _check_size(pixels.shape[1], pixels.shape[0])
    return Picture(np.ascontiguousarray(pixels).astype(np.uint8, copy=False))


def _decode(image: Image.Image) -> Picture:
    _check_size(*image.size)
    conversions = [_choice_among_several(image)]
    is_grey = _has_raw_mode(image, "LA;16")  # which Pillow loads as RGBA
    if _sixteen_bit_samples(image):
        conversions.append("16_bit_to_8_bit")
    if _orientation(image) in range(2, 9):  # asked before TIFF's loader turns the image by itself
        conversions.append("exif_transposed")
    image.load()
    _check_size(*image.size)
    upright = ImageOps.exif_transpose(image)
    converted, conversion = _to_l_or_rgb(upright.convert("LA") if is_grey else upright)
    conversions.append(conversion)
    return Picture(np.array(converted, dtype=np.uint8), ",".join(filter(None, conversions)))


def _looks_like(content: bytes) -> str:
    """What it is by its first bytes. The bytes stay out: a link may lead to a file that no table should quote."""
    begin = content[:64].lstrip().lower()
    return next((f"; it looks like {kind}" for magic, kind in _MAGIC.items() if begin.startswith(magic)), "")


def _check_size(width: int, height: int) -> None:
    if not 1 <= width * height <= MAX_PIXELS:
        raise Rejected(f"{width} x {height} pixels: between 1 and {MAX_PIXELS} are allowed", "DecompressionBombError")


def _choice_among_several(image: Image.Image) -> str:
    """The conversion that takes one picture of a file that holds several, where one is the picture."""
    if len(image.info.get("sizes", ())) > 1:
        return "ico_largest"
    is_animated = getattr(image, "is_animated", False)  # to count the frames, Pillow would read them all
    if is_animated and image.format != "MPO":
        raise Rejected("several frames or pages: one image is needed")
    return "mpo_first" if is_animated else ""


def _sixteen_bit_samples(image: Image.Image) -> bool:
    """Does Pillow drop the low byte of each sample on loading? Its modes do not tell, its raw modes do."""
    return image.mode in ("RGB", "RGBA", "LA") and _has_raw_mode(image, ";16")


def _has_raw_mode(image: Image.Image, part: str) -> bool:
    """Not to be known any more once the image, or its EXIF, is loaded."""
    return any(part in str(tile.args) for tile in getattr(image, "tile", ()))


def _orientation(image: Image.Image) -> int | None:
    return image.getexif().get(ExifTags.Base.Orientation)


def _to_l_or_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    mode = image.mode
    if mode in ("L", "RGB"):
        return image, ""
    if mode == "1":
        return image.convert("L"), "bilevel_to_l"
    if mode.startswith("I"):
        return _sixteen_bit(image), "16_bit_to_l"
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        flat = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return flat.convert("L" if mode in ("LA", "La") else "RGB"), "alpha_on_white"
    if mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):
        return image.convert("RGB"), f"{'palette' if mode == 'P' else mode.lower()}_to_rgb"
    raise Rejected(f"mode {mode}: no documented conversion")


def _sixteen_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise Rejected(f"grey values {values.min()} ... {values.max()}: 16 bits are the most that can be kept")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
