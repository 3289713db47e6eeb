"""Containers that mean harm: each function writes one into a folder and says where it is.

All are small on disk. None holds an image that must be read; what matters is what it takes to find that out.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
from PIL import Image

from tests.datasets.archives import IMAGES, PNGS, add, idx, zipped
from tests.datasets.hostile import encoded

GIGABYTES = 12
Bomb = Callable[[Path], Path | str]
_ZEROS = bytes(2**24)


def _deflated(gigabytes: float, begin: bytes = b"") -> bytes:
    """A gzip stream of ``begin`` and zeros, made of one deflate block that is repeated, in no time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(_ZEROS) + packer.flush(zlib.Z_FULL_FLUSH)
    first = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = first.compress(begin) + first.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\3" + head + block * int(gigabytes * 64) + b"\3\0" + bytes(8)


def _header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _tar_gz(kind: bytes, name: str = "././@LongLink", gigabytes: float = GIGABYTES) -> Bomb:
    def write(folder: Path) -> Path:
        content = _deflated(gigabytes, _header(name, int(gigabytes * 2**30), kind))
        (folder / "x.tar.gz").write_bytes(content)
        return folder / "x.tar.gz"

    return write


def _zip(method: int, packed: bytes, size: int, name: str = "a.png", suffix: str = "zip") -> Bomb:
    """A zip of one member whose header says that it has ``size`` bytes."""

    def write(folder: Path) -> Path:
        path = folder / f"x.{suffix}"
        encoded_name = name.encode()
        local = struct.pack("<4s5H3I2H", b"PK\3\4", 46, 0, method, 0, 33, 0, len(packed), size, len(encoded_name), 0)
        entry = struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 46, 46, 0, method, 0, 33, 0, len(packed), size, len(encoded_name), *[0] * 4, 0, 0
        )
        body = local + encoded_name + packed
        entry += encoded_name
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(body), 0)
        path.write_bytes(body + entry + end)
        return path

    return write


def _bzipped(size: int, name: str = "a.png", suffix: str = "zip") -> Bomb:
    return lambda folder: _zip(zipfile.ZIP_BZIP2, _bz2_zeros(), size, name, suffix)(folder)


def _bz2_zeros() -> bytes:
    """3 GB in 2 KB."""
    packer = bz2.BZ2Compressor(9)
    return b"".join([packer.compress(bytes(2**26)) for _ in range(48)]) + packer.flush()


def _zip_lzma() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16}]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    properties = lzma._encode_filter_properties(filters[0])  # type: ignore[attr-defined]
    packed = packer.compress(bytes(2**28)) + packer.flush()
    return struct.pack("<BBH", 9, 4, len(properties)) + properties + packed


def _raw_deflate(gigabytes: float) -> bytes:
    return _deflated(gigabytes)[10:-8]


def _npy(descr: str, shape: str, order: bool = False, padding: int = 0) -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}}}{' ' * padding}\n".encode()
    return b"\x93NUMPY\2\0" + struct.pack("<I", len(text)) + text


def _npz(**arrays: bytes | tuple[bytes, int]) -> Bomb:
    """Arrays as their first bytes, and how many megabytes of zeros follow."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in arrays.items():
                begin, megabytes = content if isinstance(content, tuple) else (content, 0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    stream.write(begin)
                    for _ in range(megabytes // 16):
                        stream.write(_ZEROS)
        return folder / "x.npz"

    return write


def _file(name: str, content: Callable[[], bytes]) -> Bomb:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def _structured() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(2, dtype=[("a", np.uint8)]))
    return stream.getvalue()


def _good_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, IMAGES)
    return stream.getvalue()


def _tar_of(
    make: Callable[[tarfile.TarFile], None], mode: str = "w:gz", name: str = "x.tar.gz", **options: object
) -> Bomb:
    def write(folder: Path) -> Path:
        with tarfile.open(folder / name, mode, **options) as archive:  # type: ignore[call-overload]
            make(archive)
        return folder / name

    return write


def _long_names(archive: tarfile.TarFile) -> None:
    for i in range(300):
        add(archive, "n" * 60_000 + f"{i}.png", PNGS[0])


def _many_labels(archive: tarfile.TarFile) -> None:
    for i in range(3_000):
        add(archive, f"s.{i}.cls", b"l" * 2**19)
    add(archive, "s.png", PNGS[0])


def _many_large(archive: tarfile.TarFile) -> None:
    for i in range(16):
        member = tarfile.TarInfo(f"s.{i}.png")
        member.size = 2**28
        archive.addfile(member, io.BytesIO(bytes(2**28)))


def _digits(archive: tarfile.TarFile) -> None:
    for i in range(200):
        member = tarfile.TarInfo(f"{i}.png")
        member.pax_headers = {"comment": "1" * 60_000}
        archive.addfile(member)


def _globals(archive: tarfile.TarFile) -> None:
    for i in range(5_000):
        text = f"60030 key{i:05d}=".encode()
        record = text + b"v" * (60_030 - len(text) - 1) + b"\n"
        member = tarfile.TarInfo("global")
        member.type, member.size = tarfile.XGLTYPE, len(record)
        archive.fileobj.write(member.tobuf() + record.ljust(-(-len(record) // 512) * 512, b"\0"))  # type: ignore[union-attr]
        archive.offset += 0


def _nested(folder: Path) -> Path:
    content = zlib.compress(bytes(2**24))
    for depth in range(6):
        inner = zipped(folder / f"{depth}.zip", [(f"{depth}{i}.zip", content) for i in range(16)])
        content = inner.read_bytes()
        inner.unlink()
    (folder / "x.zip").write_bytes(content)
    return folder / "x.zip"


def _overlapping(folder: Path) -> Path:
    """One member of 500 MB in 5,000 names."""
    packed, n = _raw_deflate(0.46), 5_000
    size = int(0.46 * 64) * 2**24
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(packed), size, 5, 0) + b"a.png"
    entry = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 33, 0, len(packed), size, 5, *[0] * 4, 0, 0) + b"a.png"
    )
    body, directory = local + packed, entry * n
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(directory), len(body), 0)
    (folder / "x.zip").write_bytes(body + directory + end)
    return folder / "x.zip"


def _table(columns: Callable[[], dict[str, object]], **options: object) -> Bomb:
    def write(folder: Path) -> Path:
        options.setdefault("compression", "zstd")
        pq.write_table(pa.table(columns()), folder / "x.parquet", **options)  # type: ignore[arg-type]
        return folder / "x.parquet"

    return write


class _OpenVault(pe.KmsClient):
    """Keys that anyone can read."""

    def __init__(self, _: pe.KmsConnectionConfig) -> None:
        super().__init__()

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        return base64.b64encode(key_bytes)

    def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
        return base64.b64decode(wrapped_key)


def _encrypted(folder: Path) -> Path:
    """One column of two, so that anyone can open the file."""
    config = pe.EncryptionConfiguration("key", column_keys={"key": ["secret"]}, plaintext_footer=True)
    options = pe.CryptoFactory(_OpenVault).file_encryption_properties(pe.KmsConnectionConfig(), config)
    return _table(lambda: {"image": PNGS, "secret": [1] * 6}, encryption_properties=options)(folder)  # type: ignore[return-value]


def _huge_cells(n: int, megabytes: int) -> pa.Array:
    cell = bytes(megabytes * 2**20)
    return pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), pa.array([cell], pa.large_binary()))


def _arrow(columns: Callable[[], dict[str, object]], compression: str | None) -> Bomb:
    def write(folder: Path) -> Path:
        table = pa.table(columns())
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with (
            pa.OSFile(str(folder / "x.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema, options=options) as out,
        ):
            out.write_table(table)
        return folder / "x.arrow"

    return write


def _metadata(name: str, content: Callable[[], Iterator[bytes]]) -> Bomb:
    def write(folder: Path) -> Path:
        (folder / "a.png").write_bytes(PNGS[0])
        with (folder / name).open("wb") as stream:
            stream.writelines(content())
        return folder

    return write


def _progressive(scans: int, side: int) -> bytes:
    jpeg = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    return jpeg[:end] + jpeg[last:end] * scans + jpeg[end:]


def _gif(insert: bytes, before_image: bool) -> bytes:
    gif = encoded(Image.new("L", (8, 8)), "GIF")
    place = gif.index(b"\x2c") if before_image else len(gif) - 1
    return gif[:place] + insert + gif[place:]


def _gif_frames() -> bytes:
    gif = encoded(Image.new("L", (8, 8)), "GIF")
    return _gif(gif[gif.index(b"\x2c") : -1] * 1_000_000, before_image=False)


def _png_chunks() -> bytes:
    chunk = struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    return PNGS[0][:33] + chunk * 3_000_000 + PNGS[0][33:]


def _bmp_runs() -> bytes:
    bmp = bytearray(encoded(Image.new("P", (64, 64)), "BMP"))
    bmp[30:34] = struct.pack("<I", 1)
    return bytes(bmp[: struct.unpack_from("<I", bmp, 10)[0]]) + b"\0\2\0\0" * 8_000_000


def _pipe(folder: Path) -> Path:
    import os

    os.mkfifo(folder / "a.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "metadata.csv").symlink_to("/dev/zero")
    return folder


BOMBS: dict[str, Bomb] = {
    "zip: bzip2, lying size": _bzipped(1000),
    "zip: bzip2, true size": _bzipped(2**32 - 2),
    "zip: LZMA": lambda folder: _zip(zipfile.ZIP_LZMA, _zip_lzma(), 1000)(folder),
    "zip: deflate, small size": lambda folder: _zip(zipfile.ZIP_DEFLATED, _raw_deflate(3), 1000)(folder),
    "zip: deflate, 500 MB": lambda folder: _zip(zipfile.ZIP_DEFLATED, _raw_deflate(0.46), int(0.46 * 64) * 2**24)(
        folder
    ),
    "zip: deflate, size beyond": lambda folder: _zip(zipfile.ZIP_DEFLATED, _raw_deflate(0.1), 2**29)(folder),
    "zip: stored, size beyond": _zip(zipfile.ZIP_STORED, PNGS[0], 2**29),
    "zip: zstandard": _zip(93, b"\x28\xb5\x2f\xfd" + bytes(100), 1000),
    "zip: long name": _zip(zipfile.ZIP_STORED, PNGS[0], len(PNGS[0]), "n" * 60_000 + ".png"),
    "zip: 5,000 overlapping members": _overlapping,
    "zip: nested": _nested,
    "tar.gz: GNU long name": _tar_gz(tarfile.GNUTYPE_LONGNAME),
    "tar.gz: GNU long link": _tar_gz(tarfile.GNUTYPE_LONGLINK),
    "tar.gz: pax header": _tar_gz(tarfile.XHDTYPE),
    "tar.gz: pax global header": _tar_gz(tarfile.XGLTYPE),
    "tar.gz: GNU sparse": _tar_gz(tarfile.GNUTYPE_SPARSE, "a.png"),
    "tar.gz: image of 12 GB": _tar_gz(tarfile.REGTYPE, "a.png"),
    "tar.gz: companion of 12 GB": _tar_gz(tarfile.REGTYPE, "a.txt"),
    "tar.gz: label of 500 MB": _tar_gz(tarfile.REGTYPE, "a.json", 0.5),
    "tar.gz: zeros": _file("x.tar.gz", lambda: _deflated(GIGABYTES)),
    "tar.gz: long names of members": _tar_of(_long_names, format=tarfile.GNU_FORMAT),
    "tar.gz: many labels of a sample": _tar_of(_many_labels),
    "tar.gz: large images of a sample": _tar_of(_many_large),
    "tar.gz: digits in pax": _tar_of(_digits, format=tarfile.PAX_FORMAT),
    "tar.gz: many global headers": _tar_of(_globals),
    "tar.gz: negative size": _tar_gz(tarfile.REGTYPE, "a.png", 0.0),
    "tar: xz": _tar_of(lambda archive: add(archive, "a.png", bytes(2**26)), "w:xz", "x.tar"),
    "tar: bz2": _tar_of(lambda archive: add(archive, "a.png", bytes(2**26)), "w:bz2", "x.tar"),
    "tar.xz": _tar_of(lambda archive: add(archive, "a.png", bytes(2**26)), "w:xz", "x.tar.xz"),
    "npz: labels of 3 GB": _npz(images=_good_npy(), labels=(_npy("<i8", "(402653184,)"), 3072)),
    "npz: a label of 2 GB": _npz(images=_good_npy(), labels=(_npy("<U500000000", "(6,)"), 1024)),
    "npz: labels of a terabyte": _npz(images=_good_npy(), labels=_npy("<i8", "(137438953472,)")),
    "npz: labels, header of 3 GB": _npz(images=_good_npy(), labels=(b"\x93NUMPY\2\0\0\0\0\xc0", 3072)),
    "npz: Fortran order, 3 GB": _npz(images=(_npy("|u1", "(3145728, 32, 32)", order=True), 3072)),
    "npz: images of 1 GB each": _npz(images=(_npy("|u1", "(3, 32768, 32768)"), 3072)),
    "npz: header of 3 GB": _npz(images=(b"\x93NUMPY\2\0\0\0\0\xc0", 3072)),
    "npz: nested header": _npz(images=_npy("|u1", "(" * 3000 + ")" * 3000)),
    "npz: bzip2": _bzipped(1000, "images.npy", "npz"),
    "npy: Fortran order, a terabyte": _file("x.npy", lambda: _npy("|u1", "(1073741824, 32, 32)", order=True)),
    "npy: structured": _file("x.npy", lambda: _structured()),
    "idx.gz: zeros behind": _file("x-idx3-ubyte.gz", lambda: _deflated(GIGABYTES, idx(IMAGES))),
    "idx.gz: lying count": _file("x-idx3-ubyte.gz", lambda: gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 8, 8))),
    "idx.gz: huge images": _file("x-idx3-ubyte.gz", lambda: _deflated(3, struct.pack(">4I", 0x803, 2, 2**16, 2**15))),
    "parquet: a cell of 300 MB in 64 rows": _table(lambda: {"image": _huge_cells(64, 300)}),
    "parquet: texts of 200 MB": _table(lambda: {"image": PNGS, "text": pa.array(["x" * 200 * 2**20] * 6)}),
    "parquet: many texts": _table(lambda: {"image": PNGS} | {f"t{i}": ["x" * 2**25] * 6 for i in range(48)}),
    "parquet: lists beside the bytes": _table(
        lambda: {
            "image": pa.StructArray.from_arrays(
                [pa.array(PNGS), pa.array([[0] * 2**24] * 6, pa.list_(pa.int64()))], ["bytes", "evil"]
            )
        }
    ),
    "parquet: an encrypted column": _encrypted,
    "parquet: empty texts without end": _table(
        lambda: {"image": pa.array([b""] * 30_000_000)},
        use_dictionary=False,
        column_encoding={"image": "DELTA_LENGTH_BYTE_ARRAY"},
        data_page_size=2**31 - 1,
        max_rows_per_page=2**31 - 1,
    ),
    "arrow: compressed zeros": _arrow(lambda: {"image": [bytes(2**30)]}, "zstd"),
    "arrow: a text of 64 MB in 4,096 rows": _arrow(
        lambda: {
            "image": PNGS[:1] * 4096,
            "t": pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), pa.array(["x" * 2**26])),
        },
        None,
    ),
    "metadata.csv: one line": _metadata("metadata.csv", lambda: (b"file_name," for _ in range(20_000_000))),
    "metadata.csv: many rows": _metadata(
        "metadata.csv", lambda: iter([b"file_name\n", *(b"%d\n" % i for i in range(5_000_000))])
    ),
    "metadata.jsonl: duplicate keys": _metadata(
        "metadata.jsonl", lambda: iter([b"{", *[b'"a":1,'] * 5_000_000, b'"b":1}'])
    ),
    "metadata.jsonl: nested": _metadata("metadata.jsonl", lambda: iter([b"[" * 900_000])),
    "folder: pipes and devices": _pipe,
    "jpeg: 600 scans": _file("x.zip", lambda: _zip_of(_progressive(600, 8192))),
    "jpeg: 80 scans of 64 million pixels": _file("x.zip", lambda: _zip_of(_progressive(80, 8192))),
    "gif: a million frames": _file("x.zip", lambda: _zip_of(_gif_frames())),
    "gif: comments": _file("x.zip", lambda: _zip_of(_gif(b"\x21\xfe\1a\0" * 4_000_000, before_image=True))),
    "png: three million chunks": _file("x.zip", lambda: _zip_of(_png_chunks())),
    "bmp: runs of nothing": _file("x.zip", lambda: _zip_of(_bmp_runs())),
}


def _zip_of(image: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.img", image)
    return stream.getvalue()


SLOW = {
    "zip: bzip2, lying size",
    "zip: bzip2, true size",
    "zip: LZMA",
    "tar.gz: image of 12 GB",
    "tar.gz: companion of 12 GB",
    "tar.gz: many labels of a sample",
    "tar.gz: large images of a sample",
    "npz: labels of 3 GB",
    "npz: a label of 2 GB",
    "npz: labels, header of 3 GB",
    "npz: Fortran order, 3 GB",
    "npz: images of 1 GB each",
    "npz: header of 3 GB",
    "npz: bzip2",
    "parquet: a cell of 300 MB in 64 rows",
    "parquet: texts of 200 MB",
    "parquet: many texts",
    "parquet: lists beside the bytes",
    "parquet: empty texts without end",
    "arrow: compressed zeros",
    "arrow: a text of 64 MB in 4,096 rows",
    "metadata.csv: one line",
    "metadata.csv: many rows",
    "jpeg: 80 scans of 64 million pixels",
    "png: three million chunks",
    "bmp: runs of nothing",
}
"""Those that take more than a second or two to make or to read."""
