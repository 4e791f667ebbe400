"""Reading and writing of images and masks. The files here are made with PIL, NumPy and bytes directly."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image, ImageFile

from pixelsem.errors import InputError, OutputError, PixelsemError
from pixelsem.images import (
    MAX_PIXELS,
    image_size,
    iter_chunks,
    list_images,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    write_image,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = np.random.default_rng(2).integers(0, 65536, (5, 7), dtype=np.uint16)

# PIL's warnings are switched off where pixelsem runs by itself; pytest switches them on again.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

each_example = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(path: Path, pixels: NDArray[np.generic], **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def png(path: Path, depth: int, colour: int, size: tuple[int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> Path:
    """Write a PNG byte by byte; ``rows`` with their filter bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = b"".join(chunk(*pair) for pair in chunks)
    tail = body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + tail)
    return path


def grey_as_rgb(grey: NDArray[np.integer]) -> NDArray[np.integer]:
    return np.repeat(grey[:, :, None], 3, axis=2)


# What a picture may be


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_rgb_is_read_exactly(tmp_path: Path, suffix: str) -> None:
    read = read_image(save(tmp_path / f"a.{suffix}", PICTURE))
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, PICTURE)


def test_lossless_webp_and_gif_are_read_exactly(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.webp", PICTURE, lossless=True)), PICTURE)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.gif", GREY)), grey_as_rgb(GREY))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, suffix: str, orientation: int, undo: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255  # one corner and
    pixels[:8, 16:] = 128  # another tell the eight ways apart
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, object] = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    path = save(tmp_path / f"a.{suffix}", pixels, exif=exif, **options)
    read = read_image(path)
    expected = undo(pixels)
    assert read.shape == expected.shape
    assert image_size(path) == expected.shape[:2]
    assert np.abs(read.astype(int) - expected).max() <= (2 if suffix == "jpg" else 0)


def test_broken_exif_data_do_not_cost_the_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", PICTURE, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0")
    assert image_size(path) == PICTURE.shape[:2]
    assert read_image(path).shape == PICTURE.shape


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path, suffix: str) -> None:
    wide = np.array([[0, 128, 129, 257, 32768, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    read = read_image(save(tmp_path / f"a.{suffix}", wide))
    np.testing.assert_array_equal(read, grey_as_rgb(np.rint(wide / 257).astype(np.uint8)))
    assert read[0, :, 0].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_16_bit_pgm_is_scaled_to_8_bits(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535))
    np.testing.assert_array_equal(read_image(tmp_path / "a.pgm"), [[[1, 1, 1], [255, 255, 255]]])


def test_16_bit_colour_is_scaled_to_8_bits(tmp_path: Path) -> None:
    row = struct.pack(">xHHH", 0, 32768, 65535)
    read = read_image(png(tmp_path / "a.png", 16, 2, (1, 1), row))
    assert np.abs(read[0, 0].astype(int) - [0, 128, 255]).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_grey_is_expanded(tmp_path: Path, suffix: str) -> None:
    flat = np.full((5, 7), 77, np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / f"a.{suffix}", flat)), grey_as_rgb(flat))


def test_black_and_white_is_expanded(tmp_path: Path) -> None:
    read = read_image(save(tmp_path / "a.png", GREY > 127))
    np.testing.assert_array_equal(read, grey_as_rgb(np.where(GREY > 127, 255, 0)))


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [255, 0, 0], [0, 255, 0]]])


def test_a_transparent_palette_entry_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 0, 200])
    image.save(tmp_path / "one.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), [[[10, 20, 30], [255, 255, 255], [0, 0, 200]]])
    image.save(tmp_path / "several.png", transparency=bytes([255, 0, 51]))
    read = read_image(tmp_path / "several.png")
    np.testing.assert_array_equal(read, [[[10, 20, 30], [255, 255, 255], [204, 204, 244]]])


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    colour = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    read = read_image(save(tmp_path / "a.png", colour))
    np.testing.assert_array_equal(read, [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]])
    grey = Image.merge(
        "LA", [Image.fromarray(np.array([[0, 0]], np.uint8)), Image.fromarray(np.array([[255, 0]], np.uint8))]
    )
    grey.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), [[[0, 0, 0], [255, 255, 255]]])


def test_alpha_that_is_not_used_changes_nothing(tmp_path: Path) -> None:
    opaque = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", opaque)), PICTURE)


def test_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255, 255, 255], [4, 5, 6]]])


def test_cmyk_is_converted(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=100)
    red = read_image(tmp_path / "a.jpg")
    assert red.shape == (16, 16, 3)
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 4


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", PICTURE).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(path), PICTURE)


def test_a_photo_with_an_embedded_preview_is_the_photo(tmp_path: Path) -> None:
    photo, preview = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (8, 8), "blue")
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview], quality=100)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    read = read_image(tmp_path / "a.jpg")
    assert read.shape == (16, 16, 3)
    assert np.abs(read.astype(int) - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000)])
def test_extreme_shapes(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    "name", ["with space.png", "new\nline.png", "ünï 日本.png", "-rf.png", "a.b.c.PNG", "%s{}.png"]
)
def test_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path(name), PICTURE)
    assert list_images(tmp_path) == [tmp_path / name]
    np.testing.assert_array_equal(read_image(Path(name)), PICTURE)


# What is refused, in one line that names the file


def refusal(path: Path, read: Callable[[Path], object] = read_image) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


readers = pytest.mark.parametrize("read", [read_image, read_mask])


@readers
def test_missing_empty_folder_text_and_loop(tmp_path: Path, read: Callable[[Path], object]) -> None:
    assert refusal(tmp_path / "none.png", read) == "no such file"
    (tmp_path / "empty.png").touch()
    assert refusal(tmp_path / "empty.png", read) == "an empty file"
    (tmp_path / "folder.png").mkdir()
    assert refusal(tmp_path / "folder.png", read) == "a folder, not an image"
    (tmp_path / "text.png").write_text("not an image\n" * 50)
    assert refusal(tmp_path / "text.png", read) == "not an image that can be read"
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert refusal(tmp_path / "loop.png", read) == "cannot be read: Too many levels of symbolic links"
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert refusal(tmp_path / "gone.png", read) == "no such file"


@readers
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert refusal(tmp_path / "a.png", read) == "not a regular file"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", PICTURE)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", deny)
    assert refusal(path) == "cannot be read: Permission denied"


@readers
@pytest.mark.parametrize("format", ["png", "jpg", "tif", "webp", "gif", "bmp", "ppm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, read: Callable[[Path], object], format: str, share: float) -> None:
    path = save(tmp_path / f"a.{format}", np.random.default_rng(4).integers(0, 256, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = refusal(path, read)
    assert message.startswith(("damaged or truncated image (", "not an image that can be read"))


def test_a_truncated_file_is_refused_where_a_library_made_pil_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.jpg", np.random.default_rng(4).integers(0, 256, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-500])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert refusal(path).startswith("damaged or truncated image (")


def test_a_damaged_png_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", PICTURE)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 0xFF
    path.write_bytes(data)
    assert refusal(path).startswith("damaged or truncated image (")


@readers
@pytest.mark.parametrize("side", [10_001, 50_000, 2**31 - 1])
def test_a_small_file_that_claims_a_huge_size_is_refused_unread(
    tmp_path: Path, read: Callable[[Path], object], side: int
) -> None:
    path = png(tmp_path / "a.png", 8, 0, (side, side), b"\0" * 1000)
    assert path.stat().st_size < 200
    message = refusal(path, read)
    assert f"over {MAX_PIXELS:,} pixels; refused" in message or message == "not an image that can be read"


@readers
@pytest.mark.parametrize("format", ["gif", "png", "webp", "tif"])
def test_several_frames_are_refused(tmp_path: Path, read: Callable[[Path], object], format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"a.{format}", save_all=True, append_images=frames[1:])
    assert refusal(tmp_path / f"a.{format}", read) == "has several frames; extract the one to use"


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_of_32_bits_are_no_picture(tmp_path: Path, dtype: type, kind: str) -> None:
    path = save(tmp_path / "a.tif", GREY.astype(dtype))
    assert refusal(path) == f"pixels of kind '{kind}' are no picture yet; convert it to 8-bit RGB"


def test_formats_that_run_programs_are_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    path = (tmp_path / "a.eps").rename(tmp_path / "a.png")
    assert refusal(path) == "not an image that can be read"


# Listing


def test_listing_follows_files_and_not_folders_and_sorts_by_path(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a.png", "b.png", ".hidden.png", ".git/x.png", "b/notes.txt", "b/c/x.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a.png", "b/10.JPG", "b/2.png", "b/c/x.webp", "b.png", "link.png"]


def test_listing_what_is_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PixelsemError, match=r"none: cannot be read: No such file or directory$"):
        list_images(tmp_path / "none")
    (tmp_path / "a.png").touch()
    with pytest.raises(PixelsemError, match=r"a\.png: cannot be read: Not a directory$"):
        list_images(tmp_path / "a.png")


@pytest.mark.parametrize("name", [b"a\\b.png", b"a\xff.png"])
def test_names_that_no_manifest_can_hold_are_told_at_once(tmp_path: Path, name: bytes) -> None:
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(PixelsemError, match="rename it"):
        list_images(tmp_path)


# Round trips


@each_example
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_images_come_back_as_written(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    write_image(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)


@each_example
@given(
    st.sampled_from([np.uint8, np.uint16, np.bool_]).flatmap(
        lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 9), st.integers(1, 9)))
    )
)
def test_masks_come_back_as_written(tmp_path: Path, mask: NDArray[np.generic]) -> None:
    write_image(tmp_path / "a.png", mask)
    read = read_mask(tmp_path / "a.png")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, np.where(mask, 255, 0) if mask.dtype == np.bool_ else mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == ("I;16" if mask.dtype == np.uint16 else "L")


def test_views_are_written_as_they_are_seen(tmp_path: Path) -> None:
    for view in (PICTURE[::-1, ::-2], PICTURE.transpose(1, 0, 2), PICTURE[:, :, ::-1]):
        write_image(tmp_path / "a.png", view)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), view)
    write_image(tmp_path / "a.png", WIDE.T)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), WIDE.T)


@pytest.mark.parametrize(
    "pixels",
    [
        PICTURE.astype(float), PICTURE.astype(np.uint16), PICTURE[:, :, :2], GREY.astype(np.int64), PICTURE[0, 0],
        PICTURE[:0],
    ],
)  # fmt: skip
def test_other_arrays_are_a_programming_error(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(TypeError, match=r"neither uint8 \[H, W, 3\] nor a mask"):
        write_image(tmp_path / "a.png", pixels)
    assert not (tmp_path / "a.png").exists()


def test_a_full_disk_keeps_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", PICTURE)

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written: No space left on device"):
        write_image(tmp_path / "a.png", PICTURE[::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), PICTURE)


# Masks


def test_masks_of_every_kind_give_their_numbers(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "8.png", GREY)), GREY)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "16.png", WIDE)), WIDE)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "16.tif", WIDE)), WIDE)
    large = WIDE.astype(np.int32) * 1000
    np.testing.assert_array_equal(read_mask(save(tmp_path / "32.tif", large)), large)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "1.png", GREY > 127)), np.where(GREY > 127, 255, 0))
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgb.png", grey_as_rgb(GREY))), GREY)
    rgba = np.dstack([grey_as_rgb(GREY), 255 - GREY])
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgba.png", rgba)), GREY)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "la.png", rgba[:, :, 2:])), GREY)


@pytest.mark.parametrize("transparency", [None, 3])
def test_a_palette_mask_gives_indices_and_not_colours(tmp_path: Path, transparency: int | None) -> None:
    labels = np.array([[0, 1, 2], [3, 255, 7]], np.uint8)
    image = Image.fromarray(labels, "P")
    image.putpalette(list(np.random.default_rng(5).integers(0, 256, 768)))
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), labels)


@pytest.mark.parametrize(("depth", "row", "labels"), [(2, b"\0\x1b", [0, 1, 2, 3]), (4, b"\0\x01\x9f", [0, 1, 9, 15])])
@pytest.mark.parametrize("colour", [0, 3])
def test_masks_of_2_and_4_bits_are_not_stretched(
    tmp_path: Path, depth: int, row: bytes, labels: list[int], colour: int
) -> None:
    palette = [(b"PLTE", bytes(range(48)))] if colour == 3 and depth == 4 else [(b"PLTE", bytes(12))]
    path = png(tmp_path / "a.png", depth, colour, (4, 1), row, *(palette if colour == 3 else []))
    assert read_mask(path).tolist() == [labels]


def test_a_colour_image_is_no_mask(tmp_path: Path) -> None:
    assert refusal(save(tmp_path / "a.png", PICTURE), read_mask).startswith("a colour image (RGB), not a mask; save it")


# The rest


def test_reading_in_threads_gives_the_same(tmp_path: Path) -> None:
    pictures = np.random.default_rng(6).integers(0, 256, (40, 9, 9, 3), dtype=np.uint8)
    for number, pixels in enumerate(pictures):
        write_image(tmp_path / f"{number}.png", pixels)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda number: read_image(tmp_path / f"{number}.png"), range(40)))
    np.testing.assert_array_equal(read, pictures)


def test_reading_prints_no_warnings(tmp_path: Path) -> None:
    save(tmp_path / "exif.jpg", PICTURE, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0")
    png(tmp_path / "large.png", 8, 0, (10_001, 10_001), b"\0")
    script = """
import sys
from pixelsem.errors import InputError
from pixelsem.images import read_image
from pathlib import Path
read_image(Path("exif.jpg"))
try:
    read_image(Path("large.png"))
except InputError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_masks_are_resized_to_values_they_hold() -> None:
    mask = np.array([[0, 70_000], [3, 5]])
    np.testing.assert_array_equal(resize_mask(mask, (4, 4)), np.repeat(np.repeat(mask, 2, 0), 2, 1))
    flags = np.array([[True, False]])
    resized = resize_mask(flags, (2, 4))
    assert resized.dtype == np.bool_
    np.testing.assert_array_equal(resized, [[True, True, False, False]] * 2)


def test_images_are_resized_by_height_and_width() -> None:
    assert resize_image(PICTURE, (3, 11), "bilinear").shape == (3, 11, 3)
    flat = np.full((8, 8, 3), 9, np.uint8)
    np.testing.assert_array_equal(resize_image(flat, (3, 5), "lanczos"), np.full((3, 5, 3), 9))
    np.testing.assert_array_equal(resize_image(PICTURE, (10, 14), "nearest")[::2, ::2], PICTURE)


def test_chunks_cover_everything_once() -> None:
    assert [number for part in iter_chunks(7, 3) for number in range(7)[part]] == list(range(7))
    assert list(iter_chunks(0, 3)) == []
