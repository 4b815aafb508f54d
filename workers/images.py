"""Images from a folder, squared and cut into patches as the vision tower takes them. It knows no MLX."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from store.checkpoint import ImageConfig
from store.errors import ImagesError

Fit = Literal["squash", "pad", "crop"]

HEIC = (".heic", ".heif")
SUFFIXES = (".avif", ".bmp", ".gif", *HEIC, ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112         # the EXIF tag; 1 is upright
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255)      # under transparency, and around an image that is padded


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images of a folder, in the order that filenames.txt will have."""

    paths: list[str]      # relative to the folder, POSIX, sorted by code point
    skipped: int          # what was passed over: files of other suffixes, broken links, and those of `outside`
    outside: int = 0      # links that lead out of the folder, to files or to folders


def find_images(folder: Path) -> FoundImages:
    """List the images of a folder and its subfolders; files and folders that begin with a dot are ignored.

    Raise ImagesError for a folder without images, and for a name that filenames.txt cannot hold.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ImagesError(f"{folder}: expected a folder of images, found {found}")
    root = folder.resolve()
    files = list(_walk(folder, root))
    outside = {path for path in files if _leads_outside(path, root)}
    images = [path for path in files if path.suffix.lower() in SUFFIXES and path not in outside and path.is_file()]
    if not images:
        raise ImagesError(f"{folder}: expected images ({', '.join(SUFFIXES)}), found "
                          + _others(len(files) - len(outside), len(outside)))
    paths = sorted(_relative(path, folder) for path in images)
    return FoundImages(paths, len(files) - len(images), len(outside))


def _others(files: int, outside: int) -> str:
    """Name what a folder without images holds."""
    links = f"{outside} links that lead outside it; copy the files"
    return " and ".join([f"{files} other files"] * (files > 0 or not outside) + [links] * (outside > 0))


def _walk(folder: Path, root: Path) -> Iterator[Path]:
    """Yield the files, and the links to folders outside; none to a folder is followed, lest there be a loop."""
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for path in (Path(parent, name) for name in folders) if _leads_outside(path, root))
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise ImagesError(f"{error.filename}: cannot be read: {error.strerror}; make it readable, or move it elsewhere")


def _leads_outside(path: Path, root: Path) -> bool:
    """Tell whether this is a link to something that is there, but not in the folder."""
    return path.is_symlink() and path.exists() and not path.resolve().is_relative_to(root)


def _relative(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImagesError(f"{folder}: expected file names in UTF-8, found {name!r}; rename the file") from None
    if "\n" in name or "\r" in name:
        raise ImagesError(f"{folder}: expected file names of one line, found {name!r}; rename the file")
    return name


def read_image(path: Path, side: int, fit: Fit) -> NDArray[np.uint8]:
    """Read an image upright and in RGB, as a square: uint8 [side, side, 3]; raise ImagesError for a damaged one.

    squash changes the ratio of the sides; pad keeps it and adds white; crop keeps it and takes the centre.
    """
    if path.suffix.lower() in HEIC:
        _register_heic(path)
    try:
        with Image.open(path) as image:
            _check_size(path, image)
            return np.asarray(_square(_rgb(path, _upright(image)), side, fit))
    except ImagesError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImagesError(f"{path}: expected an image of ordinary size: {error}") from None
    except UnidentifiedImageError:
        raise ImagesError(f"{path}: expected an image, found a file of no known format") from None
    except Exception as error:      # decoders of foreign bytes raise whatever they like
        raise ImagesError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None


def _register_heic(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise ImagesError(f"{path}: HEIC images need the extra `heic`: pip install pillow-heif") from None
    pillow_heif.register_heif_opener()


def _check_size(path: Path, image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS or 0
    if image.width * image.height > limit:
        raise ImagesError(f"{path}: expected at most {limit:,} pixels, found {image.width:,} x {image.height:,}; "
                          "make it smaller (a tiny file can unpack to more than the memory holds)")


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says.

    Not by ImageOps.exif_transpose, which writes the other tags anew and fails where one of them is damaged.
    """
    image.load()
    turn = TURNS.get(image.getexif().get(ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency over white, 16 bit scaled to 8."""
    if image.mode.startswith("I"):
        return _from_16_bit(path, image).convert("RGB")
    if image.mode == "F":
        raise ImagesError(f"{path}: expected 8 or 16 bits a colour, found floating point; save it as PNG or JPEG")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, WHITE)
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(path: Path, image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise ImagesError(f"{path}: expected 8 or 16 bits a colour, found 32; save it as PNG or JPEG")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """Resize to side x side pixels, bicubic."""
    if fit == "squash":
        return image.resize((side, side), Image.Resampling.BICUBIC)
    if fit == "pad":
        return _pad(image, side)
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # Cut first: resize(box=...) would let the filter see what lies outside.
    centre = image.crop((left, top, left + edge, top + edge))
    return centre.resize((side, side), Image.Resampling.BICUBIC)


def _pad(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
    return square


def patches(images: NDArray[np.uint8], config: ImageConfig) -> NDArray[np.float32]:
    """Cut images [n, side, side, 3] into normalised patches [n, patches, C x T x ph x pw].

    Four consecutive patches are one merge cell; the single frame is doubled along T.
    """
    n, side = images.shape[0], images.shape[1]
    patch, merge, frames = config.patch_size, config.merge_size, config.temporal_patch_size
    cells = side // (patch * merge)
    values = np.arange(256)[:, None] / 255
    table = ((values - config.mean) / config.std).astype(np.float32)      # [256, 3]: all there is to compute
    pixels = table[images, np.arange(3)]                                  # [n, side, side, C]
    split = pixels.reshape(n, cells, merge, patch, cells, merge, patch, 3)
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6)                     # [n, rows, cols, mh, mw, C, ph, pw]
    doubled = np.repeat(ordered[..., None, :, :], frames, axis=-3)        # [..., C, T, ph, pw]
    return doubled.reshape(n, (cells * merge) ** 2, 3 * frames * patch * patch)
