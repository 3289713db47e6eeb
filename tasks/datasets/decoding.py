"""Bytes to pixels, with one documented conversion for each kind of image, and a named reason for each refusal.

| what comes in                    | what is kept            | recorded as            |
| -------------------------------- | ----------------------- | ---------------------- |
| L, RGB (8 bit)                   | as it is                |                        |
| EXIF orientation                 | turned upright          | ``exif_transposed``    |
| 1 bit                            | L                       | ``bilevel_to_l``       |
| 16 and 32 bit integer grey       | L, divided by 256       | ``16_bit_to_l``        |
| palette, CMYK, YCbCr, LAB, HSV   | RGB                     | ``palette_to_rgb``, ...|
| LA, RGBA, palette with alpha     | composited on white     | ``alpha_on_white``     |
| several frames, floating point   | refused                 | reason in the reject   |
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

MAX_PIXELS = 64 * 2**20
"""Images with more pixels are refused before they are decompressed."""

ImageFile.LOAD_TRUNCATED_IMAGES = False


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
        """Lossless PNG; the same picture gives the same bytes."""
        buffer = io.BytesIO()
        Image.fromarray(self.pixels).save(buffer, format="PNG", optimize=False, compress_level=6)
        return buffer.getvalue()


def decode(content: bytes) -> Picture:
    """Decode an image file.

    Raises:
        Rejected: for anything that is not one whole, reasonably sized image.
    """
    if not content:
        raise Rejected("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(content)) as image:
                return _decode(image)
    except Rejected:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... by format and damage
        raise Rejected(str(error) or type(error).__name__, type(error).__name__) from error


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
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or 0 in pixels.shape:
        raise Rejected(f"shape {pixels.shape}: (H, W), (H, W, 1) or (H, W, 3) is needed")
    return Picture(np.ascontiguousarray(pixels).astype(np.uint8, copy=False))


def _decode(image: Image.Image) -> Picture:
    width, height = image.size
    if width * height == 0 or width * height > MAX_PIXELS:
        raise Rejected(f"{width} x {height} pixels: between 1 and {MAX_PIXELS} are allowed", "DecompressionBombError")
    if getattr(image, "n_frames", 1) > 1:
        raise Rejected(f"{getattr(image, 'n_frames', 0)} frames: one image is needed")
    image.load()
    conversions = []
    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size or upright.tobytes() != image.tobytes():
        conversions.append("exif_transposed")
    converted, conversion = _to_l_or_rgb(upright)
    if conversion:
        conversions.append(conversion)
    return Picture(np.array(converted, dtype=np.uint8), ",".join(conversions))


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
    if values.size and (values.min() < 0 or values.max() > 0xFFFF):
        raise Rejected(f"grey values {values.min()} ... {values.max()}: 16 bits are the most that can be kept")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))
