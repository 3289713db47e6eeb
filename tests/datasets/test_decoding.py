"""Bytes to pixels: each kind of image has one conversion, all else one named refusal, and nothing else happens."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from latentprint.tasks.datasets import decoding
from latentprint.tasks.datasets.decoding import MAX_BYTES, Picture, Rejected, decode, from_array
from tests.datasets.hostile import encoded, png

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], axis=-1)
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PAIR = np.array([[10, 200]], np.uint8)
ROTATE_90_CLOCKWISE = Image.Exif()
ROTATE_90_CLOCKWISE[0x0112] = 6


def palette(transparent: int | None = None) -> bytes:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([1, 2, 3, 40, 50, 60])
    return encoded(image, transparency=transparent) if transparent is not None else encoded(image)


CONVERSIONS = {
    "grey": (encoded(GREY), GREY, ""),
    "colour": (encoded(COLOUR), COLOUR, ""),
    "lossless webp": (encoded(COLOUR, "WEBP", lossless=True), COLOUR, ""),
    "bilevel": (encoded(Image.fromarray(PAIR > 100)), [[0, 255]], "bilevel_to_l"),
    "16 bit grey": (png(2, 1, 16, 0, b"\0\x12\x34\xff\xff"), [[0x12, 0xFF]], "16_bit_to_l"),
    "16 bit colour": (png(1, 1, 16, 2, b"\0\x12\x34\x56\x78\x9a\xbc"), [[[0x12, 0x56, 0x9A]]], "16_bit_to_8_bit"),
    "palette": (palette(), [[[1, 2, 3], [40, 50, 60]]], "palette_to_rgb"),
    "palette with alpha": (palette(transparent=0), [[[255] * 3, [40, 50, 60]]], "alpha_on_white"),
    "grey with alpha": (png(2, 1, 8, 4, b"\0\x07\x00\x07\xff"), [[255, 7]], "alpha_on_white"),
    "colour with alpha": (png(2, 1, 8, 6, b"\0abc\x00abc\xff"), [[[255] * 3, list(b"abc")]], "alpha_on_white"),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[[255, 0, 0]]], "cmyk_to_rgb"),
    "turned PNG": (encoded(PAIR, exif=ROTATE_90_CLOCKWISE), [[10], [200]], "exif_transposed"),
    "turned TIFF": (encoded(PAIR, "TIFF", exif=ROTATE_90_CLOCKWISE), [[10], [200]], "exif_transposed"),
    "icon": (encoded(Image.fromarray(COLOUR).convert("RGB"), "ICO", sizes=[(4, 4), (8, 8)]), None, "ico_largest"),
}


def test_a_grey_picture_with_alpha_is_the_same_one_in_8_and_in_16_bits() -> None:
    eight, sixteen = (
        png(3, 1, 8, 4, b"\0\x07\x00\x07\xff\x50\x80"),
        png(3, 1, 16, 4, b"\0\x07\x99\x00\x99\x07\x99\xff\x99\x50\x99\x80\x99"),
    )
    over_white = round((0x50 * 0x80 + 255 * 0x7F) / 255)
    assert decode(sixteen).pixels.tolist() == decode(eight).pixels.tolist() == [[255, 7, over_white]]
    assert decode(sixteen).content_hash == decode(eight).content_hash
    assert decode(sixteen).conversion == "16_bit_to_8_bit,alpha_on_white"


@pytest.mark.parametrize("kind", CONVERSIONS)
def test_each_kind_of_image_has_one_recorded_conversion(kind: str) -> None:
    content, pixels, conversion = CONVERSIONS[kind]
    picture = decode(content)
    assert picture.conversion.split(",")[0] == conversion
    if pixels is not None:
        np.testing.assert_array_equal(picture.pixels, pixels)
        assert picture.content_hash == Picture(np.array(pixels, np.uint8)).content_hash


def test_of_a_stereo_photo_and_of_an_icon_the_picture_that_viewers_show_is_kept() -> None:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    photo = decode(encoded(first, "MPO", save_all=True, append_images=[second], quality=100))
    assert photo.conversion == "mpo_first"
    assert (
        np.abs(photo.pixels.astype(int) - COLOUR).mean() < 30 < np.abs(photo.pixels.astype(int) + COLOUR - 255).mean()
    )
    assert decode(CONVERSIONS["icon"][0]).size == (8, 8)


def test_the_content_decides_the_format_and_lossless_formats_agree() -> None:
    kinds = {"PNG": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}, "PPM": {}}
    hashes = {decode(encoded(COLOUR, kind, **options)).content_hash for kind, options in kinds.items()}
    assert hashes == {Picture(COLOUR).content_hash}


def test_content_hash_is_blake2b_of_size_mode_and_pixels() -> None:
    pixels = np.array([[1, 2, 3]], np.uint8)
    assert Picture(pixels).content_hash == hashlib.blake2b(b"3,1,L,\1\2\3", digest_size=16).hexdigest()
    assert len({Picture(GREY.reshape(shape)).content_hash for shape in [(8, 8), (4, 16), (16, 4)]}) == 3


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_picture_survives_its_png(height: int, width: int, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    picture = Picture(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    again = decode(picture.png())
    assert (again.content_hash, again.conversion) == (picture.content_hash, "")
    assert again.png() == picture.png()


MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "LA",
    "PA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "I;16B",
    "F",
    "RGBX",
    "La",
)
KINDS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
CONVERSION_NAMES = (
    "exif_transposed|bilevel_to_l|16_bit_to_l|16_bit_to_8_bit|palette_to_rgb|cmyk_to_rgb|ycbcr_to_rgb|lab_to_rgb|"
    "hsv_to_rgb|alpha_on_white|mpo_first|ico_largest"
)


@given(st.sampled_from(MODES), st.sampled_from(KINDS), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_any_mode_in_any_format_turned_any_way_is_grey_or_rgb_or_refused(
    mode: str, kind: str, height: int, width: int, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        content = encoded(Image.new(mode, (width, height)), kind, exif=exif)
    except (OSError, ValueError, KeyError):
        assume(False)  # the format has no such mode
    with Image.open(io.BytesIO(content)) as written:
        is_float = written.mode == "F"  # some formats turn it into another mode
    if is_float:
        with pytest.raises(Rejected, match="mode F"):
            decode(content)
        return
    picture = decode(content)
    assert picture.pixels.dtype == np.uint8
    assert picture.mode in ("L", "RGB")
    assert re.fullmatch(f"(({CONVERSION_NAMES}),?)*", picture.conversion), picture.conversion
    if kind in ("PNG", "TIFF", "JPEG", "WEBP"):
        assert picture.size == ((width, height) if orientation < 5 else (height, width))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_upright(orientation: int) -> None:
    upright = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(np.ascontiguousarray(stored), exif=exif))
    np.testing.assert_array_equal(picture.pixels, upright)
    assert picture.conversion == ("" if orientation == 1 else "exif_transposed")


TWO_FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]}
REFUSED = {
    "empty": (b"", "empty file", "Rejected"),
    "web page": (b"<!DOCTYPE html>", "^not a readable image; it looks like a web page$", "UnidentifiedImageError"),
    "PostScript": (encoded(COLOUR, "EPS"), "it looks like PostScript", "UnidentifiedImageError"),
    "somebody's secret": (b"root:*:20228:0:99999", "^not a readable image$", "UnidentifiedImageError"),
    "truncated JPEG": (encoded(NOISE, "JPEG")[:700], "truncated", "OSError"),
    "animated GIF": (encoded(GREY, "GIF", **TWO_FRAMES), "several frames", "Rejected"),
    "animated PNG": (encoded(GREY, "PNG", **TWO_FRAMES), "several frames", "Rejected"),
    "animated WebP": (encoded(COLOUR, "WEBP", **TWO_FRAMES), "several frames", "Rejected"),
    "TIFF of two pages": (encoded(GREY, "TIFF", **TWO_FRAMES), "several frames", "Rejected"),
    "floating point": (encoded(GREY.astype(np.float32), "TIFF"), "mode F", "Rejected"),
    "no pixels": (png(0, 1, 8, 0, b"\0"), "^not a readable image$", "UnidentifiedImageError"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_one_whole_image_is_refused_by_name(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, reason, cause = REFUSED[kind]
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program ran on the file"))
    with pytest.raises(Rejected, match=reason) as refusal:
        decode(content)
    assert refusal.value.cause == cause


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_cut_file_is_refused_unless_every_pixel_is_still_there(kind: str) -> None:
    whole = encoded(NOISE, kind)
    expected = decode(whole).content_hash
    for length in range(0, len(whole), 7):
        try:
            found = decode(whole[:length]).content_hash
        except Rejected:
            continue
        assert found == expected
        assert length > len(whole) / 2


def test_a_file_too_large_to_be_an_image_is_not_looked_into() -> None:
    with pytest.raises(Rejected, match="at most"):
        decode(bytes(MAX_BYTES + 1))


VALID = [content for content, _, _ in CONVERSIONS.values()] + [
    encoded(COLOUR, kind) for kind in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PPM", "TIFF")
]


@given(st.sampled_from(VALID), st.data())
@settings(max_examples=400, deadline=None)
def test_damage_gives_a_picture_or_a_reject_and_nothing_else(content: bytes, data: st.DataObject) -> None:
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(1, len(damaged))) :]
    try:
        outcome = str(decode(bytes(damaged)).pixels.dtype)
    except Rejected as error:
        outcome = str(error)
    assert outcome
    assert not re.search(r"at 0x[0-9a-f]+", outcome), "a memory address would make every run's rejects differ"


def in_a_new_process(program: str) -> subprocess.CompletedProcess[str]:
    """Runs with the warning filters and file descriptors that a command has, not pytest's."""
    imports = "import resource\nfrom latentprint.tasks.datasets.decoding import Rejected, decode\n"
    imports += "from tests.datasets import hostile\n"
    command = [sys.executable, "-c", imports + textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)


def test_bombs_are_refused_without_the_memory_that_they_ask_for() -> None:
    answer = in_a_new_process("""
        files = hostile.bombs()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, content in files.items():
            try:
                print("not refused", name, decode(content).size)
            except Rejected:
                pass
        print(len(files), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    n_bombs, megabytes = map(int, answer.stdout.split())
    assert n_bombs == 13
    assert megabytes < 40


def test_libtiff_and_pillow_say_nothing_over_the_progress_bar() -> None:
    answer = in_a_new_process("""
        size = {256: 8, 257: 8, 258: 8, 262: 1, 273: 200, 277: 1, 278: 8, 279: 64}
        for other in [{259: 5}, {259: 7}, {259: 8}, {259: 50001}, {259: 5, 277: 65535}, {259: 5, 279: 2**31}, {270: 9}]:
            try:
                print("not refused", decode(hostile.tiff({**size, **other}, bytes(range(64)))).size)
            except Rejected:
                pass
        import warnings
        warnings.warn("of another module")
    """)
    assert answer.stdout == ""
    assert re.fullmatch(r"\S+ UserWarning: of another module\n", answer.stderr)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (1, 5, 4), (5, 4, 3), (3, 5, 4)])
def test_raw_pixels_may_have_their_channel_first_or_last(shape: tuple[int, ...]) -> None:
    picture = from_array(np.arange(np.prod(shape), dtype=np.uint8).reshape(shape))
    assert picture.size == (4, 5)
    assert picture.mode == ("RGB" if 3 in shape else "L")


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros(4, np.uint8), np.zeros((4, 0), np.uint8)])
def test_raw_pixels_of_another_type_or_shape_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(Rejected):
        from_array(pixels)


def test_whatever_other_packages_ship_is_a_picture_or_a_reject_with_a_reason_and_nothing_is_printed() -> None:
    """Icons, figures, photos, and no less the fonts, sounds and matrices beside them that are not images."""
    answer = in_a_new_process("""
        import importlib.util, pathlib
        counts = {True: 0, False: 0}
        for name in ("matplotlib", "sklearn", "scipy", "networkx", "prefect"):
            (package,) = importlib.util.find_spec(name).submodule_search_locations
            files = sorted(p for p in pathlib.Path(package).rglob("*") if p.is_file() and ".py" not in p.suffix)
            images = [p for p in files if p.suffix in (".png", ".jpg", ".ico", ".gif", ".tif", ".svg", ".pdf")]
            for path in images + [p for p in files if p not in images and p.stat().st_size < 2**18][:150]:
                try:
                    is_picture = decode(path.read_bytes()).pixels.size > 0
                except Rejected as error:
                    is_picture = False
                    assert str(error) and chr(10) not in str(error), path
                counts[is_picture] += 1
        print(*counts.values())
    """)
    n_pictures, n_rejects = map(int, answer.stdout.split())
    assert n_pictures >= 30
    assert n_rejects >= 200
    assert answer.stderr == ""


def test_a_large_photo_is_within_the_limits_and_pillow_refuses_at_ours() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    png = Picture(noise).png()
    assert len(png) > 6 * 2**20
    assert (decode(png).pixels == noise).all()
    assert 2 * (Image.MAX_IMAGE_PIXELS or 0) == decoding.MAX_PIXELS  # Pillow raises at twice its own limit


def test_the_limits_of_pixels_bytes_scans_and_reads_are_inclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = encoded(COLOUR, "JPEG")
    n_scans, pieces = photo.count(b"\xff\xda"), decoding._Pieces(photo)
    with Image.open(pieces, formats=["JPEG"]) as image:
        image.load()
    for name, least, says in (
        ("MAX_PIXELS", 64, "8 x 8 pixels: between 1 and 63 are allowed"),
        ("MAX_BYTES", len(photo), f"{len(photo)} bytes: at most {len(photo) - 1} are read"),
        ("MOST_SCANS", n_scans, f"{n_scans} scans: at most {n_scans - 1} are decoded"),
        ("MOST_READS", pieces.n_reads, f"more than {pieces.n_reads - 1} pieces: too many to decode"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(decoding, name, least)
            assert decode(photo).size == (8, 8)
            patched.setattr(decoding, name, least - 1)
            with pytest.raises(Rejected, match=f"^{says}$"):
                decode(photo)


def test_scans_are_counted_in_jpegs_alone() -> None:
    markers = b"\xff\xda" * 100
    assert decode(encoded(COLOUR) + markers).size == (8, 8)
    with pytest.raises(Rejected, match="101 scans: at most 100 are decoded"):
        decode(encoded(COLOUR, "JPEG") + markers)


def test_a_file_is_read_whole_or_as_far_as_asked() -> None:
    assert decoding._Pieces(b"abcdef").read() == b"abcdef"
    assert decoding._Pieces(b"abcdef").read(None) == b"abcdef"
    pieces = decoding._Pieces(b"abcdef")
    assert [pieces.read(2) for _ in range(3)] == [b"ab", b"cd", b"ef"]
    assert pieces.n_reads == 3
    assert 100_000 < decoding.MOST_READS < 10**7, "what 64 million pixels take, and some seconds of work"


def test_a_png_is_compressed_as_it_always_was() -> None:
    gradient = np.add.outer(np.arange(64), np.arange(64) ** 2 // 7).astype(np.uint8)
    picture = Picture(gradient)
    levels = {level: encoded(gradient, "PNG", optimize=False, compress_level=level) for level in (5, 6, 7, 9)}
    assert picture.png() == levels[6]
    assert len(set(levels.values())) > 1
    assert picture.png() != encoded(gradient, "PNG", optimize=True)


def test_a_reason_is_one_short_line_without_addresses() -> None:
    assert decoding.in_words(ValueError("<a object at 0x7f00>\nmore")) == "<a object>"
    assert len(decoding.in_words(ValueError("x" * 900))) == 500


def test_pillow_is_quiet() -> None:
    import logging

    assert not logging.getLogger("PIL").propagate


FIRST_OR_LAST = [
    ((5, 4), "hw"),
    ((5, 4, 1), "hwc"),
    ((1, 5, 4), "chw"),
    ((5, 4, 3), "hwc"),
    ((3, 5, 4), "chw"),
    ((3, 5, 3), "hwc"),
    ((3, 3, 3), "hwc"),
    ((1, 4, 3), "hwc"),
    ((1, 1, 1), "hwc"),
    ((3, 5, 1), "hwc"),
    ((3, 1, 5), "chw"),
    ((1, 3, 2), "chw"),
    ((3, 3, 2), "chw"),
]


@pytest.mark.parametrize(("shape", "order"), FIRST_OR_LAST)
def test_raw_pixels_keep_their_values(shape: tuple[int, ...], order: str) -> None:
    given_ = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    by_name = dict(zip(order, shape, strict=True))
    kept = from_array(given_).pixels
    assert kept.flags["C_CONTIGUOUS"]
    n_channels = by_name.get("c", 1)
    assert kept.shape == (by_name["h"], by_name["w"]) + ((3,) if n_channels == 3 else ())
    for row in range(by_name["h"]):
        for column in range(by_name["w"]):
            at = {"hw": (row, column), "hwc": (row, column, slice(None)), "chw": (slice(None), row, column)}[order]
            assert np.ravel(kept[row, column]).tolist() == np.ravel(given_[at]).tolist()
    assert np.array_equal(decoding.channels_first(kept).transpose(1, 2, 0).reshape(kept.shape), kept)
    assert decoding.channels_first(kept).shape == (n_channels, by_name["h"], by_name["w"])


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((4, 4), np.float32), "dtype float32: uint8 pixels are needed"),
        (np.zeros(4, np.uint8), "shape (4,): (H, W), (H, W, 1) or (H, W, 3) is needed"),
        (np.zeros((5, 4, 2), np.uint8), "shape (5, 4, 2): (H, W), (H, W, 1) or (H, W, 3) is needed"),
        (np.zeros((2, 5, 4), np.uint8), "shape (2, 5, 4): (H, W), (H, W, 1) or (H, W, 3) is needed"),
        (np.zeros((4, 5, 4), np.uint8), "shape (4, 5, 4): (H, W), (H, W, 1) or (H, W, 3) is needed"),
        (np.zeros((1, 5, 4, 3), np.uint8), "shape (1, 5, 4, 3): (H, W), (H, W, 1) or (H, W, 3) is needed"),
        (np.zeros((4, 0), np.uint8), f"0 x 4 pixels: between 1 and {decoding.MAX_PIXELS} are allowed"),
        (np.zeros((0, 4, 3), np.uint8), f"4 x 0 pixels: between 1 and {decoding.MAX_PIXELS} are allowed"),
    ],
)
def test_other_raw_pixels_are_refused_in_these_words(pixels: np.ndarray, says: str) -> None:
    with pytest.raises(Rejected, match=f"^{re.escape(says)}$"):
        from_array(pixels)


@pytest.mark.parametrize(
    ("values", "kept"),
    [([0, 255, 256, 511, 512], [0, 0, 1, 1, 2]), ([65535, 65280, 65279], [255, 255, 254])],
)
def test_grey_values_of_16_bits_lose_their_low_byte(values: list[int], kept: list[int]) -> None:
    for dtype in (np.int32, np.uint16):
        picture = decode(encoded(np.array([values], dtype), "TIFF"))
        assert (picture.pixels.tolist(), picture.conversion) == ([kept], "16_bit_to_l")


@pytest.mark.parametrize("values", [[-1, 5], [0, 65536]])
def test_grey_values_beyond_16_bits_are_refused(values: list[int]) -> None:
    says = rf"^grey values {values[0]} \.\.\. {values[1]}: 16 bits are the most that can be kept$"
    with pytest.raises(Rejected, match=says):
        decode(encoded(np.array([values], np.int32), "TIFF"))


@pytest.mark.parametrize("orientation", [0, 9])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = decode(encoded(PAIR, exif=exif))
    assert (picture.pixels.tolist(), picture.conversion) == (PAIR.tolist(), "")


def test_an_icon_of_one_size_had_no_choice() -> None:
    icon = encoded(Image.fromarray(COLOUR).convert("RGB"), "ICO", sizes=[(8, 8)])
    assert decode(icon).conversion == ""
    two = encoded(Image.fromarray(COLOUR).convert("RGB"), "ICO", sizes=[(8, 8), (4, 4)])
    assert (decode(two).conversion, decode(two).size) == ("ico_largest", (8, 8))


@pytest.mark.parametrize(
    ("mode", "colour", "kept", "conversion"),
    [
        ("LA", (10, 0), 255, "alpha_on_white"),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255], "alpha_on_white"),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30], "alpha_on_white"),
        ("CMYK", (0, 0, 0, 0), [255, 255, 255], "cmyk_to_rgb"),
        ("L", 10, 10, ""),
        ("RGB", (1, 2, 3), [1, 2, 3], ""),
        ("1", 1, 255, "bilevel_to_l"),
        ("HSV", (0, 255, 255), [255, 0, 0], "hsv_to_rgb"),
        ("YCbCr", (0, 128, 128), [0, 0, 0], "ycbcr_to_rgb"),
    ],
)
def test_each_mode_becomes_grey_or_colour_in_one_way(mode: str, colour: object, kept: object, conversion: str) -> None:
    image, name = decoding._to_l_or_rgb(Image.new(mode, (1, 1), colour))
    assert (np.asarray(image).tolist(), name) == ([[kept]], conversion)


def test_a_mode_without_a_conversion_is_refused() -> None:
    with pytest.raises(Rejected, match=r"^mode F: no documented conversion$"):
        decoding._to_l_or_rgb(Image.new("F", (1, 1)))
