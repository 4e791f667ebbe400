"""Reading and writing of 8-bit images and masks: the only place that touches PIL."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFile, ImageFont, ImageOps, UnidentifiedImageError

from pixelsem.errors import InputError, PixelsemError
from pixelsem.files import one_line, path_problem, reason, write_atomically

#: Suffixes that count as images when a folder is listed.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})

#: Images with more pixels than this are refused (decompression bombs).
MAX_PIXELS = 100_000_000

#: What a file may be, whatever its suffix says. PIL's other decoders are left out: one of them runs programs.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")

#: How PIL stretches grey levels of 2 and 4 bits to 8.
_STRETCH = {"L;2": 85, "L;4": 17}

#: The EXIF tag of how a picture is turned, and its values of those that lie on their side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, frozenset({5, 6, 7, 8})

# PIL warns about large images, which are checked here, and about broken EXIF data, which is passed over.
# Not with catch_warnings around each call: that is not thread-safe, and images are read in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def list_images(root: Path) -> list[Path]:
    """Return every image below ``root`` (sub-folders too, hidden ones not), sorted by relative path.

    Symbolic links to files are followed, links to folders are not (they may form loops). Raises
    :class:`PixelsemError` where ``root`` or a folder in it cannot be read, or for a name that a manifest
    cannot hold (see :func:`pixelsem.files.path_problem`).
    """

    def refuse(error: OSError) -> None:
        raise PixelsemError(f"{error.filename}: cannot be read: {reason(error)}") from error

    found: list[Path] = []
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, n) for n in names if Path(n).suffix.lower() in SUFFIXES and not n.startswith(".")]
    for path in found:
        problem = path_problem(path.relative_to(root).as_posix())
        if problem is not None:
            raise PixelsemError(f"{path}: its name {problem}; rename it")
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read an image as uint8 [H, W, 3] RGB, C-contiguous and writable.

    EXIF orientation is applied; palette, grey and CMYK images are converted, 16 bits are scaled to 8, alpha is
    laid over white. Raises :class:`InputError` with one line that names the file: not an image, damaged or
    truncated, over :data:`MAX_PIXELS`, several frames, or a kind of pixel with no agreed meaning as a picture
    (32-bit, Lab).
    """
    with _opened(Path(path)) as image:
        image.load()
        sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
        if not sixteen and image.mode in ("I", "F", "LAB", "HSV"):
            raise InputError(f"{path}: pixels of kind {image.mode!r} are no picture yet; convert it to 8-bit RGB")
        upright = _upright(image)
        return _from_16_bits(np.asarray(upright)) if sixteen else _to_rgb(upright)


def image_size(path: Path | str) -> tuple[int, int]:
    """Return the (height, width) that :func:`read_image` gives, by the file's header alone; raises as that does."""
    with _opened(Path(path)) as image:
        width, height = image.size
        # Of a TIFF, PIL tells the size that it has upright. The pixels are whole where only the EXIF data are broken.
        with suppress(Exception):
            if width != height and image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE:
                return width, height
        return height, width


@contextmanager
def _opened(path: Path | str, data: bytes | None = None, formats: tuple[str, ...] = _FORMATS) -> Iterator[Image.Image]:
    """Open one image; whatever goes wrong until the block ends becomes one :class:`InputError`.

    With ``data`` these are the file, and ``path`` is only what messages call it.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries switch it on, for the whole process
    try:
        if data is None:
            _check_file(Path(path))
        with Image.open(path if data is None else io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width}×{image.height} is over {MAX_PIXELS:,} pixels; refused")
            # Cameras put previews behind a JPEG (the format MPO); the first frame is the photo.
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: has several frames; extract the one to use")
            yield image
    except PixelsemError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except MemoryError as error:
        raise InputError(f"{path}: does not fit in memory; make it smaller") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: not an image that can be read") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path}: over {MAX_PIXELS:,} pixels; refused") from error
    except OSError as error:
        if error.errno is not None:  # from the system, not from a decoder
            raise InputError(f"{path}: cannot be read: {reason(error)}") from error
        raise InputError(f"{path}: damaged or truncated image ({one_line(error)})") from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, EOFError …
        raise InputError(f"{path}: damaged or truncated image ({one_line(error)})") from error


def _check_file(path: Path) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: a folder, not an image")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise InputError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise InputError(f"{path}: an empty file")


def _upright(image: Image.Image) -> Image.Image:
    # The pixels are whole where only the EXIF data are broken.
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_16_bits(wide: NDArray[Any]) -> NDArray[np.uint8]:
    grey = ((wide.astype(np.int64) + 128) // 257).astype(np.uint8)  # v / 257, rounded
    return np.repeat(grey[:, :, None], 3, axis=2)


def write_image(path: Path, pixels: NDArray[np.integer] | NDArray[np.bool_]) -> None:
    """Write pixels as PNG, atomically; :func:`read_image` or :func:`read_mask` gives the same back.

    ``pixels`` are uint8 [H, W, 3] (RGB), or a mask [H, W]: uint8, uint16, or bool, which becomes 0 and 255.
    Raises :class:`TypeError` for anything else, :class:`OutputError` where it cannot be written.
    """
    colour = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    mask = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16, np.bool_)
    if not (colour or mask) or pixels.size == 0:
        raise TypeError(f"pixels {pixels.dtype} {list(pixels.shape)} are neither uint8 [H, W, 3] nor a mask [H, W]")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    with write_atomically(path) as file:
        # At the default level, 6, photos and label maps are 1 % smaller and take more than twice the time.
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=4)


def pixel_digest(pixels: NDArray[np.integer] | NDArray[np.bool_]) -> str:
    """Return 32 digits that tell pixels apart, whatever the file's compression: of their shape and sha256.

    ``pixels`` are as :func:`write_image` takes them, or as :func:`read_image` and :func:`read_mask` return what it
    wrote: both give the same digits.
    """
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    plain = np.ascontiguousarray(pixels, dtype="<i4" if pixels.ndim == 2 else np.uint8)
    content = hashlib.sha256(repr(plain.shape).encode())
    content.update(plain.tobytes())
    return content.hexdigest()[:32]


def write_layer(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a picture with opacity as PNG, atomically: uint8 [H, W, 4] (RGB and alpha). See :func:`read_layer`.

    Raises :class:`OutputError` where it cannot be written.
    """
    with write_atomically(path) as file:
        Image.fromarray(np.ascontiguousarray(pixels), "RGBA").save(file, format="PNG")


def read_layer(path: Path) -> NDArray[np.uint8]:
    """Read a picture with its opacity as uint8 [H, W, 4] (RGB and alpha), upright; opaque where the file has none.

    What is transparent keeps the colour it has in the file. Raises :class:`InputError` as :func:`read_image` does.
    """
    with _opened(path) as image:
        return np.array(_upright(image).convert("RGBA"))


def encode_image(pixels: NDArray[np.uint8], kind: Literal["png", "webp"] = "png", *, lossless: bool = False) -> bytes:
    """Return uint8 [H, W, 3] (RGB) or [H, W] (grey) as a file's bytes: PNG, or WebP with small losses or ``lossless``.

    Without losses, WebP of a photo is a quarter smaller than PNG; its greys come back as RGB.
    """
    file = io.BytesIO()
    options: dict[str, Any] = {"optimize": True}
    if kind == "webp":
        # With losses, the best of the quick settings: the same look as JPEG at half the size.
        options = {"lossless": True, "quality": 50, "method": 1} if lossless else {"quality": 82, "method": 4}
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format=kind.upper(), **options)
    return file.getvalue()


def text_pixels(text: str, size: int) -> NDArray[np.uint8]:
    """Return a line of text ``size`` pixels high, as ink from 0 to 255: uint8 [size, W]."""
    font = ImageFont.load_default(0.78 * size)
    width = max(1, round(font.getlength(text)))
    canvas = Image.new("L", (width, size))
    ImageDraw.Draw(canvas).text((0, round(0.76 * size)), text, fill=255, font=font, anchor="ls")
    return np.array(canvas)


def read_mask(path: Path | str) -> NDArray[np.int32]:
    """Read a mask as int32 [H, W], with the numbers that are in the file.

    Grey levels of any depth, palette indices (not colours), 0 and 255 for black and white; of a colour image
    whose channels are equal, that channel. Raises :class:`InputError` for a colour image, and as
    :func:`read_image` does.
    """
    with _opened(Path(path)) as image:
        stretch = _STRETCH.get(_raw_mode(image), 1)
        image.load()
        if image.mode in ("L", "P", "I") or image.mode.startswith("I;16"):
            return np.asarray(image).astype(np.int32) // np.int32(stretch)
        if image.mode == "1":
            return np.where(np.asarray(image), 255, 0).astype(np.int32)
        if image.mode in ("LA", "PA"):
            return np.asarray(image.getchannel(0)).astype(np.int32)
        if image.mode in ("RGB", "RGBA", "RGBX"):
            red, green, blue = (np.asarray(image.getchannel(number)) for number in range(3))
            if np.array_equal(red, green) and np.array_equal(green, blue):
                return red.astype(np.int32)
        raise InputError(f"{path}: a colour image ({image.mode}), not a mask; save it as grey levels or with a palette")


def read_hints(path: Path) -> NDArray[np.uint8]:
    """Read scribbles as grey levels, uint8 [H, W], upright as :func:`read_image` has it.

    What is transparent reads as mid-grey, so that scribbles may be drawn on an empty layer. Raises
    :class:`InputError` as :func:`read_image` does.
    """
    with _opened(path) as image:
        return _hints(_upright(image))


def decode_hints(data: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read scribbles as :func:`read_hints` does from the bytes of a PNG file, uint8 [H, W].

    ``name`` is what messages call them. Their (height, width) must be ``size``, which is looked at before any
    pixel is unpacked. Raises :class:`InputError`.
    """
    height, width = size
    with _opened(name, data, ("PNG",)) as image:
        if image.size != (width, height):
            raise InputError(f"{name}: {image.width}×{image.height}, not {width}×{height}")
        return _hints(image)


def _hints(image: Image.Image) -> NDArray[np.uint8]:
    if not image.has_transparency_data:
        return np.array(image.convert("L"))
    grey = np.array(image.convert("LA"))
    return np.where(grey[:, :, 1] >= 128, grey[:, :, 0], np.uint8(128))


def _raw_mode(image: Image.Image) -> str:
    """Return how the bits in a file that is not yet loaded become grey levels, in PIL's words."""
    tiles = getattr(image, "tile", None) or [("", (), 0, "")]
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def iter_chunks(count: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``size`` that cover ``range(count)``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def resize_image(pixels: NDArray[np.uint8], size: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] to (height, width) ``size`` with one of PIL's filters (antialiased when shrinking).

    ``interpolation`` is ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or ``lanczos``.
    """
    height, width = size
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()]))


def resize_mask(mask: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Resize integers or booleans [H, W] to (height, width) ``size`` by nearest neighbour; the dtype stays.

    Values must fit into 32 bits.
    """
    height, width = size
    wide = Image.fromarray(np.ascontiguousarray(mask, dtype=np.int32))
    return np.array(wide.resize((width, height), Image.Resampling.NEAREST)).astype(mask.dtype)


def jpeg_round_trip(
    pixels: NDArray[np.uint8], quality: int, subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = "4:2:0"
) -> NDArray[np.uint8]:
    """Compress uint8 [H, W, 3] (RGB) as JPEG and decode it: uint8 [H, W, 3].

    ``quality`` from 1 to 100 scales libjpeg's tables.
    """
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="JPEG", quality=quality, subsampling=subsampling)
    file.seek(0)
    with Image.open(file, formats=("JPEG",)) as image:
        return np.array(image)
