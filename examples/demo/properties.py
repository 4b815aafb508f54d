"""Five properties of a photograph, measured on the pixels that the model sees, and the words for comparing them.

Training and tests share this module: it is the ground truth, the grammar of the answers and their reader.
It knows no model and no files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["A", "B", "same"]      # which image has more of a property, or that they are about the same
Verdict = Mapping[str, Side]          # by property
Plane = NDArray[np.float64]           # [n, side, side], one value a pixel

PROMPT = "Compare these two images."      # diptych's default
LUMA = (0.2126, 0.7152, 0.0722)           # ITU-R BT.709, on sRGB values as they are
CHROMA_MEAN = 0.3                         # Hasler and Suesstrunk (2003), "Measuring colourfulness in natural images"
LEAST_SHARPNESS = 1e-6                    # so that a flat picture has a logarithm


@dataclass(frozen=True, slots=True)
class Property:
    """A property, its words, and how far apart two images have to be."""

    name: str
    comparative: str      # image A is ...
    noun: str             # the ... is about the same
    same: float           # below this difference the images are about the same: the model is taught to say so
    margin: float         # above this difference the model has to be right: it keeps at least 60 % of the pairs


PROPERTIES = (
    Property("brightness", "brighter", "brightness", same=0.03, margin=0.11),
    Property("warmth", "warmer", "warmth", same=0.01, margin=0.03),
    Property("colourfulness", "more colourful", "colour", same=0.03, margin=0.12),
    Property("contrast", "more contrasty", "contrast", same=0.02, margin=0.07),
    Property("sharpness", "sharper", "sharpness", same=0.08, margin=0.25),      # of the logarithm to base 10
)
NAMES = tuple(property_.name for property_ in PROPERTIES)
SAME = np.array([property_.same for property_ in PROPERTIES])
MARGINS = np.array([property_.margin for property_ in PROPERTIES])


def measure(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure pictures [n, side, side, 3] by the five properties; return [n, 5], sharpness as its log10."""
    rgb = pictures / 255.0
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]      # [n, side, side] each
    luma = rgb @ np.array(LUMA)
    sharpness = np.log10(_laplacian(luma).var(axis=(1, 2)) + LEAST_SHARPNESS)
    return np.stack([
        luma.mean(axis=(1, 2)), (red - blue).mean(axis=(1, 2)), _colourfulness(red, green, blue),
        luma.std(axis=(1, 2)), sharpness,
    ], axis=-1)


def _colourfulness(red: Plane, green: Plane, blue: Plane) -> NDArray[np.float64]:
    opponents = (red - green, (red + green) / 2 - blue)
    spread = np.hypot(*(channel.std(axis=(1, 2)) for channel in opponents))
    mean = np.hypot(*(channel.mean(axis=(1, 2)) for channel in opponents))
    colourfulness: NDArray[np.float64] = spread + CHROMA_MEAN * mean
    return colourfulness


def _laplacian(luma: Plane) -> Plane:
    """Return the Laplacian of each pixel with four neighbours [n, side - 2, side - 2]."""
    middle = luma[:, 1:-1, 1:-1]
    return luma[:, 2:, 1:-1] + luma[:, :-2, 1:-1] + luma[:, 1:-1, 2:] + luma[:, 1:-1, :-2] - 4 * middle


def compare(a: NDArray[np.float64], b: NDArray[np.float64]) -> dict[str, Side]:
    """Say for each property which of two measured images [5] has more."""
    return dict(zip(NAMES, map(_side, a - b, SAME), strict=True))


def _side(difference: float, same: float) -> Side:
    if abs(difference) < same:
        return "same"
    return "A" if difference > 0 else "B"


def question(property_: Property) -> str:
    """Ask for one property; the answer is the label alone, `A` or `B`."""
    return f"Which image is {property_.comparative}?"


def interleaved(text: str) -> str:
    """Name each image before it comes, then ask."""
    return f"Image A: <image_a> Image B: <image_b> {text}"


def describe(verdict: Verdict) -> str:
    """Say a verdict in one or two English sentences; `read_answer` takes it back."""
    a, b, same = (_of_side(verdict, side) for side in ("A", "B", "same"))
    if not a and not b:
        return f"Image A and image B are about the same in {_listed([p.noun for p in same])}."
    if a and b:
        ending = f", and {_about_the_same(same)}." if same else "."
        return f"Image A is {_comparatives(a)}. Image B is {_comparatives(b)}{ending}"
    more, less, those = ("A", "B", a) if a else ("B", "A", b)
    first = f"Image {more} is {_comparatives(those)} than image {less}."
    return f"{first} {_capital(_about_the_same(same))}." if same else first


def _of_side(verdict: Verdict, side: Side) -> list[Property]:
    return [property_ for property_ in PROPERTIES if verdict[property_.name] == side]


def _comparatives(properties: Sequence[Property]) -> str:
    return _listed([property_.comparative for property_ in properties])


def _about_the_same(properties: Sequence[Property]) -> str:
    nouns = _listed([property_.noun for property_ in properties])
    return f"the {nouns} {'is' if len(properties) == 1 else 'are'} about the same"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_answer(text: str) -> dict[str, Side]:
    """Read what an answer says of each property; one that it does not name, or names twice, is left out."""
    found: dict[str, list[Side]] = {name: [] for name in NAMES}
    for side, clause in _clauses(text):
        for property_ in PROPERTIES:
            word = property_.noun if side == "same" else property_.comparative
            if re.search(rf"\b{word}\b", clause):
                found[property_.name].append(side)
    return {name: sides[0] for name, sides in found.items() if len(sides) == 1}


def _clauses(text: str) -> list[tuple[Side, str]]:
    """Divide an answer into what is said of image A, of image B, and of both."""
    clauses: list[tuple[Side, str]] = []
    for clause in re.split(r"\.\s*|, and (?=the )", text):
        if "about the same" in clause:
            clauses.append(("same", clause))
        elif said := re.match(r"Image ([AB]) is ", clause):
            clauses.append(("A" if said[1] == "A" else "B", clause))
    return clauses
