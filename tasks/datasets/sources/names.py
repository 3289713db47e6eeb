"""What a file's name says, and names as text.

Names decide only what is passed over; what a file is, its content decides:

- image suffix, unknown suffix, no suffix: read, and a reject if no image is in it;
- well-known companions of images (labels, captions, metadata, tensors, sound, video) and hidden files: passed over;
- archives within a folder or an archive: a reject, since nobody looks for images in them.
"""

from __future__ import annotations

import hashlib
import os
from typing import Literal

_IMAGES = ".avif .bmp .gif .ico .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
_ARCHIVES = ".7z .bz2 .gz .rar .tar .tgz .xz .zip .zst"
_COMPANIONS = """
    .cls .csv .db .htm .html .ini .json .jsonl .lst .md .pdf .rst .toml .tsv .txt .xls .xlsx .xml .yaml .yml .caption
    .arrow .bin .ckpt .h5 .hdf5 .joblib .npy .npz .onnx .parquet .pickle .pkl .pt .pth .pyd .safetensors .ten
    .avi .flac .mkv .mov .mp3 .mp4 .ogg .wav .webm
    .ipynb .js .lock .log .md5 .py .sh .sha256 .sha512
"""
_COMPANION_NAMES = "copying desktop.ini license licence makefile readme sha256sums thumbs.db"

LONGEST_NAME = 4096
"""Characters of an item's name, as of a path on Linux; items of a longer one are refused."""
_KEPT_OF_LONG_NAME = 200

LONGEST_LABEL = 1024
"""Characters; a longer label is cut."""

Kind = Literal["image", "companion", "archive", "unknown"]


def kind_of(name: str) -> Kind:
    """What becomes of the file ``name``, a path within its source, with ``/`` between its parts."""
    parts = name.split("/")
    if any(part.startswith(".") and part not in (".", "..") for part in parts) or "__MACOSX" in parts:
        return "companion"
    base = parts[-1].lower()
    suffix = os.path.splitext(base)[1]
    if suffix in _COMPANIONS.split() or base in _COMPANION_NAMES.split():
        return "companion"
    if suffix in _IMAGES.split():
        return "image"
    return "archive" if suffix in _ARCHIVES.split() else "unknown"


def as_text(name: str) -> str:
    r"""A file name as valid Unicode text; different names stay different.

    Bytes that are not UTF-8 (Python holds them as lone surrogates) become ``\udcNN``, NN the byte, NUL becomes
    ``\x00``, and a backslash doubles, so that no other name can look the same.
    """
    return valid(name.replace("\\", "\\\\").replace("\0", "\\x00"))


def valid(text: str) -> str:
    """``text`` with lone surrogates, which neither Arrow nor UTF-8 can hold, written out as escapes."""
    return text.encode(errors="backslashreplace").decode()


def as_label(text: str) -> str:
    """A label as it is kept."""
    return shortened(valid(text), LONGEST_LABEL)


def parent_label(name: str) -> str | None:
    """The name of the folder that directly holds the file, None at the top: its class, by convention."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else None


class UniqueNames:
    """Gives each name back, the second ``a.png`` as ``a.png#2``: archives may hold a name twice.

    Digests are kept, not names: an archive of long names must not fill the memory.
    """

    def __init__(self) -> None:
        self._uses: dict[bytes, int] = {}

    def __call__(self, name: str) -> str:
        unique, key = name, _digest(name)
        while (found := _digest(unique)) in self._uses:
            self._uses[key] += 1
            unique = f"{name}#{self._uses[key]}"
        self._uses[found] = 1
        return unique


def shortened(text: str, longest: int) -> str:
    """``text``, or its beginning and an ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def shortened_name(name: str) -> str:
    """A name of at most ``LONGEST_NAME`` characters; different names stay different."""
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:_KEPT_OF_LONG_NAME]}…{_digest(name).hex()}"


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).digest()
