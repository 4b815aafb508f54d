"""The examples: every photograph has a source and a free licence, every pair exists, the checkpoint is a real one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs.pairs import read_pairs_file
from store.checkpoint import open_checkpoint

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"
PAIRS = ROOT / "examples" / "pairs.txt"
LARGEST = 60_000      # bytes of a photograph
LICENCES = ("public domain", "CC0", "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)")


def photo_names() -> list[str]:
    return sorted(path.name for path in PHOTOS.glob("*.jpg"))


def source_rows() -> dict[str, list[str]]:
    """Return the cells of the table in SOURCES.md by file name."""
    table = re.findall(r"^\| (\S+\.jpg) \| (.*) \|$", (PHOTOS / "SOURCES.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in table}


def make_checkpoint(folder: Path, *options: str) -> Path:
    command = [sys.executable, str(ROOT / "benchmarks" / "make_checkpoint.py"), str(folder), *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "weights", "--preset", "tiny", "--seed", "1")


def test_every_photograph_names_author_source_and_a_free_licence() -> None:
    rows = source_rows()

    assert sorted(rows) == photo_names()
    for name, cells in rows.items():
        shows, author, source, licence = cells
        assert all((shows, author, source)), name
        assert licence in LICENCES, name
        assert "http" in source or "scikit-image" in source, name


def test_every_photograph_is_small_and_carries_no_metadata() -> None:
    assert 10 <= len(photo_names()) <= 16
    for name in photo_names():
        with Image.open(PHOTOS / name) as image:
            assert image.format == "JPEG"
            assert max(image.size) >= 400, name
            assert not image.getexif(), name
        assert (PHOTOS / name).stat().st_size <= LARGEST, name


def test_nothing_but_photographs_and_their_sources_lies_in_the_folder() -> None:
    assert {path.name for path in PHOTOS.iterdir()} == {*photo_names(), "SOURCES.md"}


def test_every_pair_is_there_and_every_photograph_is_in_one() -> None:
    pairs = read_pairs_file(PAIRS, len(photo_names())).pairs

    assert 12 <= len(pairs) <= 16
    assert {index for pair in pairs for index in pair} == set(range(len(photo_names())))
    assert len({first for first, _ in pairs}) < len(pairs)


def test_the_pairs_file_numbers_the_photographs_as_they_are_sorted() -> None:
    numbered = re.findall(r"(\d+) ([a-z]+)", PAIRS.read_text(encoding="utf-8").splitlines()[1])

    assert [f"{name}.jpg" for _, name in numbered] == photo_names()
    assert [int(index) for index, _ in numbered] == list(range(len(numbered)))


def test_the_tiny_checkpoint_opens_as_a_downloaded_one_does(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)

    assert checkpoint.image.side == 112      # 16 tokens an image
    assert sum(file.stat().st_size for file in tiny.iterdir()) <= 1_000_000


def test_the_same_seed_makes_the_same_checkpoint(tiny: Path, tmp_path: Path) -> None:
    again = make_checkpoint(tmp_path / "again", "--preset", "tiny", "--seed", "1")
    other = make_checkpoint(tmp_path / "other", "--preset", "tiny", "--seed", "2")

    assert all((again / file.name).read_bytes() == file.read_bytes() for file in tiny.iterdir())
    assert (other / "model.safetensors").read_bytes() != (tiny / "model.safetensors").read_bytes()


def test_the_tiny_checkpoint_renders_the_prompt_as_glm_does(tiny: Path) -> None:
    from jobs.prompt import build_prompt
    from jobs.tokenizer import load_tokenizer

    checkpoint = open_checkpoint(tiny)
    prompt = build_prompt(checkpoint, load_tokenizer(checkpoint), "Which is sharper?", thinking=False, grid=(4, 4))

    image = "<|begin_of_image|>" + "<|image|>" * 16 + "<|end_of_image|>"
    one = "<|begin_of_image|><|image|><|end_of_image|>"
    assert prompt.rendered.replace(image, one) == (
        f"[gMASK]<sop><|user|>\n{one}{one}Which is sharper?/nothink<|assistant|>\n<think></think>\n")
    assert prompt.token_ids.count(checkpoint.image_token_id) == 32
