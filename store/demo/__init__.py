"""What ships to try things with: a small trained checkpoint, photographs and a pairs file over them."""

import shutil
from pathlib import Path

from store.errors import DiptychError

NAME = "demo"      # what --weights calls the checkpoint; a folder of that name is ./demo
WEIGHTS = Path(__file__).parent / "weights"
PHOTOS = Path(__file__).parent / "photos"
PAIRS = Path(__file__).parent / "pairs.txt"


def lay_out(folder: Path) -> int:
    """Copy photographs and pairs file into a folder and return the number of photographs.

    Doing it twice is safe. Raises DiptychError where something else has one of the names, or nothing can be written.
    """
    photos = _photos()
    try:
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        for photo in photos:
            _copy(photo, folder / "photos" / photo.name)
        _copy(PAIRS, folder / PAIRS.name)
    except OSError as error:
        raise DiptychError(f"{folder}: expected a folder that can be written, found: {error}; name another") from error
    return sum(photo.suffix == ".jpg" for photo in photos)


def _photos() -> list[Path]:
    try:
        return sorted(PHOTOS.iterdir())
    except OSError as error:
        raise DiptychError(f"{PHOTOS}: expected the photographs of the demo, found: {error.strerror}; diptych is "
                           "installed without its photographs: install it again") from error


def _copy(source: Path, target: Path) -> None:
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise DiptychError(f"{target}: expected nothing or the demo's own file, found another; name another folder")
    shutil.copyfile(source, target)
