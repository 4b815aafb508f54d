"""Images: which files of a folder are taken, how each kind becomes RGB and square, and the order of patches."""

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from store.checkpoint import ImageConfig, open_checkpoint
from store.errors import ImagesError
from workers.images import find_images, patches, read_image

SMALL = Path(__file__).parent / "data" / "small"
SIDE = 28
WHITE, RED = [255, 255, 255], [200, 30, 10]


@pytest.fixture(scope="module")
def config() -> ImageConfig:
    return open_checkpoint(SMALL / "weights").image


def save(
    path: Path, mode: str = "RGB", colour: Any = tuple(RED), size: tuple[int, int] = (40, 40), **options: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def colour_of(path: Path) -> list[int]:
    """Return the one colour that a plain image has."""
    pixels = read_image(path, SIDE, "squash").reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return [int(value) for value in pixels[0]]


def with_checksums(png: bytes) -> bytes:
    """Correct the checksums of a PNG file that was changed."""
    fixed, place = png[:8], 8
    while place < len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        chunk = png[place + 4 : place + 8 + length]
        fixed += png[place : place + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        place += 12 + length
    return fixed


def noise(width: int, height: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_images_of_all_folders_are_found_in_the_order_of_code_points(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.png", "a/é.webp", "a b.JPEG", "A.Png", "a/c/1.tiff", "10.gif", "9.bmp"):
        save(tmp_path / name)

    found = find_images(tmp_path)

    assert found.paths == ["10.gif", "9.bmp", "A.Png", "a b.JPEG", "a/c/1.tiff", "a/z.png", "a/é.webp", "b.jpg"]
    assert found.paths == sorted(found.paths)
    assert found.skipped == 0


def test_dotfiles_are_ignored_and_other_files_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", ".hidden.png", ".thumbs/b.png", "c/.d/e.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "c/movie.mov", "png", ".DS_Store"):
        (tmp_path / name).write_text("x")

    found = find_images(tmp_path)

    assert (found.paths, found.skipped) == (["a.png"], 3)


def test_links_that_lead_outside_are_not_followed(tmp_path: Path) -> None:
    inside = save(tmp_path / "in" / "a.png")
    outside = save(tmp_path / "out" / "b.png")
    (tmp_path / "in" / "file.png").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)
    (tmp_path / "in" / "loop").symlink_to(inside.parent)
    (tmp_path / "in" / "same.png").symlink_to(inside)
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "in" / "nothing.png")

    found = find_images(tmp_path / "in")

    assert (found.paths, found.skipped, found.outside) == (["a.png", "same.png"], 3, 2)


def test_a_folder_of_nothing_but_links_says_where_they_lead(tmp_path: Path) -> None:
    outside = save(tmp_path / "out" / "b.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").symlink_to(outside)
    (tmp_path / "in" / "folder").symlink_to(outside.parent)

    with pytest.raises(ImagesError, match=r"found 2 links that lead outside it; copy the files"):
        find_images(tmp_path / "in")

    (tmp_path / "in" / "notes.txt").write_text("x")
    with pytest.raises(ImagesError, match=r"found 1 other files and 2 links that lead outside it; copy the files"):
        find_images(tmp_path / "in")


def test_a_folder_that_is_itself_a_link_is_read(tmp_path: Path) -> None:
    image = save(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.png").symlink_to(image)

    assert find_images(tmp_path / "link").paths == ["a.png", "b.png"]


def test_a_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a\nb.png")

    with pytest.raises(ImagesError, match=r"names of one line, found 'a\\nb.png'"):
        find_images(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps no file names but UTF-8")
def test_a_name_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png").rename(os.fsdecode(bytes(tmp_path) + b"/\xff.png"))

    with pytest.raises(ImagesError, match="expected file names in UTF-8"):
        find_images(tmp_path)


def test_a_pipe_with_the_name_of_an_image_is_not_opened(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")

    assert find_images(tmp_path).paths == ["a.png"]


def test_a_folder_without_images_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    with pytest.raises(ImagesError, match=r"expected images .*found 1 other files"):
        find_images(tmp_path)
    with pytest.raises(ImagesError, match="expected a folder of images, found nothing"):
        find_images(tmp_path / "none")
    with pytest.raises(ImagesError, match="expected a folder of images, found a file"):
        find_images(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["000.png", "001.png"])
def test_a_plain_image_is_bit_equal_to_pillows_resize(name: str) -> None:
    path = SMALL / "images" / name
    with Image.open(path) as image:
        want = np.asarray(image.convert("RGB").resize((448, 448), Image.Resampling.BICUBIC))

    assert np.array_equal(read_image(path, 448, "squash"), want)


@pytest.mark.parametrize(("mode", "colour", "suffix", "want"), [
    ("RGB", tuple(RED), ".png", RED),
    ("RGBA", (*RED, 255), ".png", RED),
    ("RGBA", (*RED, 0), ".png", WHITE),
    ("RGBA", (200, 30, 10, 51), ".webp", [244, 210, 206]),
    ("L", 77, ".png", [77, 77, 77]),
    ("LA", (77, 0), ".png", WHITE),
    ("1", 1, ".png", WHITE),
    ("1", 0, ".tif", [0, 0, 0]),
    ("I;16", 65535, ".png", WHITE),
    ("I;16", 20 * 257, ".png", [20, 20, 20]),
    ("I;16", 20 * 257, ".tif", [20, 20, 20]),
    ("I;16B", 20 * 257, ".tif", [20, 20, 20]),
    ("CMYK", (0, 255, 255, 0), ".tif", [255, 0, 0]),
])
def test_every_mode_becomes_rgb_over_white(
    tmp_path: Path, mode: str, colour: Any, suffix: str, want: list[int],
) -> None:
    lossless = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", mode, colour, **lossless)

    # One step: Pillow blends transparency in integers.
    assert colour_of(path) == pytest.approx(want, abs=1)


def test_a_palette_keeps_its_colours_and_its_transparency(tmp_path: Path) -> None:
    plain, clear = tmp_path / "plain.png", tmp_path / "clear.gif"
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, *RED])
    image.save(plain)
    image.save(clear, transparency=1)

    assert colour_of(plain) == RED
    assert colour_of(clear) == WHITE


def test_one_transparent_colour_of_an_rgb_image_becomes_white(tmp_path: Path) -> None:
    assert colour_of(save(tmp_path / "a.png", transparency=tuple(RED))) == WHITE


def test_sixteen_bits_are_scaled_evenly(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    Image.fromarray(ramp).save(tmp_path / "a.png")

    got = read_image(tmp_path / "a.png", SIDE, "squash")[..., 0]

    assert np.array_equal(got, np.round(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize(("mode", "expected"), [("F", "found floating point"), ("I", "found 32")])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, mode: str, expected: str) -> None:
    path = save(tmp_path / "a.tif", mode, 70_000)

    with pytest.raises(ImagesError, match=expected):
        read_image(path, SIDE, "squash")


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    assert colour_of(tmp_path / "a.gif") == WHITE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:4, :4] = WHITE
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)

    got = read_image(tmp_path / "a.png", SIDE, "squash")[..., 0] > 0

    top_left, top_right = got[0, 0], got[0, -1]
    bottom_right, bottom_left = got[-1, -1], got[-1, 0]
    places = {1: top_left, 5: top_left, 2: top_right, 6: top_right, 3: bottom_right, 7: bottom_right,
              4: bottom_left, 8: bottom_left}
    assert places[orientation]
    assert got.sum() == 16


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_tag_loses_neither_image_nor_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0      # the resolution is stored as a fraction
    path = save(tmp_path / "a.png", size=(40, 20), exif=exif)
    data = path.read_bytes()
    for kind in (b"\x01\x1a\x00\x02", b"\xff\xff\xff\xff"):      # as text; as a tag of no known type
        path.write_bytes(with_checksums(data.replace(b"\x01\x1a\x00\x05", kind)))

        assert (read_image(path, SIDE, "pad")[:, SIDE // 2] == RED).all()


def test_heic_photographs_are_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    path = save(tmp_path / "a.heic", size=(64, 64), quality=-1)

    assert colour_of(path) == pytest.approx(RED, abs=4)      # the codec's own colour space rounds


def test_heic_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    assert find_images(tmp_path).paths == ["IMG_0001.HEIC"]
    with pytest.raises(ImagesError, match=r"IMG_0001.HEIC: HEIC images need the extra `heic`: pip install"):
        read_image(tmp_path / "IMG_0001.HEIC", SIDE, "squash")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".gif", ".bmp"])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(60, 60)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(ImagesError, match=r"a\.\w+: cannot be read"):
        read_image(path, SIDE, "squash")


@pytest.mark.parametrize("data", [b"", b"GIF", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(data)

    with pytest.raises(ImagesError, match=r"a\.jpg: expected an image, found a file of no known format"):
        read_image(tmp_path / "a.jpg", SIDE, "squash")


def test_a_missing_image_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"a\.jpg: cannot be read: FileNotFoundError"):
        read_image(tmp_path / "a.jpg", SIDE, "squash")


@pytest.mark.parametrize("pixels", [1500, 700])      # at 1,000 allowed: Pillow warns; at twice as many it raises
def test_an_image_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int,
) -> None:
    path = save(tmp_path / "a.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)

    with pytest.raises(ImagesError, match=r"a\.png: expected an image of ordinary size: .*1600 pixels"):
        read_image(path, SIDE, "squash")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_unpacks_to_too_much_is_refused_where_warnings_are_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path / "a.png", size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)

    with pytest.raises(ImagesError, match="expected at most 1,500 pixels, found 40 x 40"):
        read_image(path, SIDE, "squash")


def test_pad_keeps_the_ratio_and_adds_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", size=(80, 40))

    square = read_image(path, SIDE, "pad")

    assert (square[7:21] == RED).all()
    assert (square[:7] == WHITE).all()
    assert (square[21:] == WHITE).all()


def test_crop_keeps_the_ratio_and_takes_the_centre(tmp_path: Path) -> None:
    pixels = np.full((40, 120, 3), 255, np.uint8)
    pixels[:, 40:80] = RED
    Image.fromarray(pixels).save(tmp_path / "a.png")

    assert (read_image(tmp_path / "a.png", SIDE, "crop") == RED).all()


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1), (28, 28)])
def test_any_ratio_becomes_a_square(tmp_path: Path, fit: Any, size: tuple[int, int]) -> None:
    assert read_image(save(tmp_path / "a.png", size=size), SIDE, fit).shape == (SIDE, SIDE, 3)


def test_a_square_is_the_same_however_it_is_fitted(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(50, 50)).save(path)

    squash, pad, crop = (read_image(path, SIDE, fit) for fit in ("squash", "pad", "crop"))

    assert np.array_equal(squash, pad)
    assert np.array_equal(squash, crop)


def test_four_consecutive_patches_are_one_merge_cell(config: ImageConfig) -> None:
    image = np.zeros((1, 56, 56, 3), np.uint8)
    image[0, 14:28, 28:42] = 255      # row 1, column 2: the third patch of the second cell

    cut = patches(image, config)

    assert cut.shape == (1, 16, 3 * 2 * 14 * 14)
    assert cut.dtype == np.float32
    assert [int(place) for place in np.flatnonzero(cut[0].max(axis=1) > 0)] == [4 + 2]


def test_a_patch_holds_colour_then_frame_then_row_then_column(config: ImageConfig) -> None:
    image = noise(28, 28)[None]

    content = patches(image, config)[0, 3].reshape(3, 2, 14, 14)      # the last patch of the only cell

    want = (image[0, 14:, 14:] / 255 - config.mean) / config.std      # [14, 14, C]
    assert np.array_equal(content[:, 0], content[:, 1])
    assert np.allclose(content[:, 0], want.transpose(2, 0, 1), atol=1e-6)      # float32's rounding at 2.7


def test_images_are_cut_one_by_one_as_together(config: ImageConfig) -> None:
    images = np.stack([noise(56, 56), noise(56, 56)[::-1]])

    both = patches(images, config)

    assert np.array_equal(both[1], patches(images[1:], config)[0])
