"""Generated pictures with the statistics of photographs: what the demo's model is trained on. It knows no model.

A scene is shaded ground, overlapping things of all sizes (after "dead leaves": Lee, Mumford and Huang, 2001), noise
that falls with frequency, stripes, points of light. A camera then blurs, sharpens, exposes, tints and adds noise.
"""

from collections.abc import Callable
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 112      # pixels; what the checkpoint's preprocessor_config.json asks for
CHUNK = 256     # pictures that one seed makes

Random = np.random.Generator
Pixels = NDArray[np.floating]      # [side, side, 3], sRGB 0..1, or a little beyond before the end


def make_pictures(count: int, seed: int, *, processes: int = 1) -> NDArray[np.uint8]:
    """Make pictures [count, SIDE, SIDE, 3]; the same count and seed give the same ones, however many processes."""
    seeds = [(seed, chunk) for chunk in range(-(-count // CHUNK))]
    if processes == 1:
        return np.concatenate(list(map(_chunk, seeds)))[:count]
    with get_context("spawn").Pool(processes) as pool:
        return np.concatenate(pool.map(_chunk, seeds))[:count]


def _chunk(seed: tuple[int, int]) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return np.stack([make_picture(rng) for _ in range(CHUNK)])


def make_picture(rng: Random) -> NDArray[np.uint8]:
    """Make one picture [SIDE, SIDE, 3]."""
    scene = SCENES[rng.choice(len(SCENES), p=SHARES)](rng)
    return np.rint(255 * np.clip(_photograph(scene, rng), 0, 1)).astype(np.uint8)


# ---- scenes
def _things(rng: Random) -> Pixels:
    """Paint things over a ground, the large ones first, each in one colour."""
    size = SIDE * int(rng.integers(1, 3))      # larger ones are shrunk at the end, as a photograph is
    image = Image.fromarray(_bytes(_ground(rng, size)))
    draw = ImageDraw.Draw(image)
    palette = _palette(rng)
    for radius in _radii(rng, size):
        _paint(draw, rng, size, radius, _colour(rng, palette))
    pixels = _floats(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    texture: Pixels = _noise(rng, rng.uniform(0.4, 1.6)) * rng.choice([0, 0.05, 0.1, 0.2])
    return pixels + texture * _mask(rng)


def _radii(rng: Random, size: int) -> NDArray[np.float64]:
    """Draw the sizes of things by a power law, as objects have them in photographs; return them falling."""
    count = int(np.exp(rng.uniform(np.log(3), np.log(250))))
    least, most = size * rng.uniform(0.01, 0.06), size * rng.uniform(0.15, 0.5)
    uniform = rng.random(count)
    return -np.sort(-(least**-1 - uniform * (least**-1 - most**-1)) ** -1)


def _paint(draw: ImageDraw.ImageDraw, rng: Random, size: int, radius: float, colour: tuple[int, int, int]) -> None:
    x, y = rng.uniform(-0.1, 1.1, 2) * size
    kind = rng.integers(4)
    if kind == 0:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    corners = int(rng.integers(3, 8))
    if kind < 3:
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    else:
        angles = rng.uniform(0, np.pi) + np.array([0, 0.2, np.pi, np.pi + 0.2])      # a bar
    draw.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=colour)


def _landscape(rng: Random) -> Pixels:
    """Put a sky over a ground, each with its own noise, divided by an uneven horizon."""
    sky, ground = _ground(rng, SIDE), _ground(rng, SIDE)
    ground = ground + _noise(rng, rng.uniform(0.3, 1.3)) * rng.uniform(0.05, 0.3)
    sky = sky + _noise(rng, rng.uniform(1.2, 2.0)) * rng.uniform(0, 0.15)
    horizon = rng.uniform(0.15, 0.85) + 0.15 * rng.random() * _noise(rng, 1.5)[0, :, 0]      # [side]
    rows = np.linspace(0, 1, SIDE)[:, None]
    return np.where((rows > horizon)[..., None], ground, sky).astype(np.float32)


def _texture(rng: Random) -> Pixels:
    """Cover everything with noise at one slope: grass, walls, clouds, fur."""
    return _ground(rng, SIDE) + _noise(rng, rng.uniform(0, 2.2)) * rng.uniform(0.1, 0.4)


def _stripes(rng: Random) -> Pixels:
    """Draw waves or bars of one direction and width over a ground."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    angle, width = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(2), np.log(40)))
    phase = width * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 7)
    wave = np.sin(phase + rng.uniform(0, 2) * _noise(rng, 1.5)[..., 0])
    wave = np.clip(wave * rng.uniform(0.7, 6), -1, 1)[..., None] / 2 + 0.5
    pixels: Pixels = _ground(rng, SIDE) * (1 - wave) + _ground(rng, SIDE) * wave
    return (pixels + 0.1 * rng.random() * _noise(rng, 1.0)).astype(np.float32)


def _lights(rng: Random) -> Pixels:
    """Scatter small lights over a dark ground."""
    size = 2 * SIDE
    image = Image.fromarray(_bytes(_ground(rng, size) * rng.uniform(0, 0.4)))
    draw = ImageDraw.Draw(image)
    for _ in range(int(np.exp(rng.uniform(np.log(5), np.log(600))))):
        x, y, radius = *rng.uniform(0, size, 2), 0.5 + rng.exponential(1.5)
        level = rng.uniform(60, 255)
        colour = tuple(int(c) for c in np.clip(level * rng.normal(1, 0.15, 3), 0, 255))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return _floats(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _portrait(rng: Random) -> Pixels:
    """Put what is in the middle of one scene, sharp, before another that is blurred."""
    back = _floats(Image.fromarray(_bytes(_things(rng))).filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 6)))))
    front = _things(rng)
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    centre, axes = rng.uniform(-0.4, 0.4, 2), rng.uniform(0.3, 0.9, 2)
    inside = ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 + 0.2 * _noise(rng, 1.5)[..., 0] < 1
    return np.where(inside[..., None], front, back)


SCENES: tuple[Callable[[Random], Pixels], ...] = (_things, _landscape, _texture, _stripes, _lights, _portrait)
SHARES = (0.35, 0.15, 0.13, 0.07, 0.08, 0.22)


# ---- what scenes are made of
def _ground(rng: Random, size: int) -> Pixels:
    """Shade from one colour to another along one direction."""
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    along = ((along - along.min()) / np.ptp(along))[..., None] ** rng.uniform(0.5, 2)
    first, last = rng.random((2, 3))
    last = first + (last - first) * rng.choice([0.1, 0.5, 1])
    shaded: Pixels = first * (1 - along) + last * along
    return shaded.astype(np.float32)


def _noise(rng: Random, slope: float) -> Pixels:
    """Make noise [side, side, 3] of spread 1 whose amplitude falls as frequency ** -slope; mostly grey."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])      # [side, side / 2 + 1]
    frequency[0, 0] = 1
    white = rng.standard_normal((3, SIDE, SIDE))
    white = white[:1] + white * rng.choice([0, 0.3, 1])
    noise = np.fft.irfft2(np.fft.rfft2(white) * frequency**-slope, s=(SIDE, SIDE))
    scaled: Pixels = noise / noise.std()
    return np.moveaxis(scaled, 0, -1).astype(np.float32)


def _mask(rng: Random) -> Pixels:
    """Choose where a texture lies: everywhere, or in patches."""
    if rng.random() < 0.4:
        return np.ones((SIDE, SIDE, 1), np.float32)
    return (_noise(rng, 1.8)[..., :1] > rng.uniform(-1, 1)).astype(np.float32)


def _palette(rng: Random) -> NDArray[np.float64]:
    """Draw a few colours around one hue, more or less alike."""
    spread: np.float64 = rng.choice([0.1, 0.25, 0.5])
    return np.clip(rng.random(3) + spread * rng.standard_normal((6, 3)), 0, 1)


def _colour(rng: Random, palette: NDArray[np.float64]) -> tuple[int, int, int]:
    level = rng.uniform(0.3, 1.4)
    colour = np.clip(255 * level * palette[rng.integers(len(palette))], 0, 255)
    return int(colour[0]), int(colour[1]), int(colour[2])


def _bytes(pixels: Pixels) -> NDArray[np.uint8]:
    return np.clip(255 * pixels, 0, 255).astype(np.uint8)


def _floats(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32) / 255


# ---- the camera
def _photograph(pixels: Pixels, rng: Random) -> Pixels:
    """Blur or sharpen, set saturation, contrast and exposure, tint, add grain."""
    pixels = _focus(pixels, rng)
    grey = pixels.mean(axis=-1, keepdims=True)
    pixels = grey + (pixels - grey) * _saturation(rng)
    middle = pixels.mean()
    pixels = middle + (pixels - middle) * np.exp(rng.uniform(np.log(0.6), np.log(3.5)))
    pixels = np.clip(pixels + rng.normal(0, 0.15), 0, 1) ** np.exp(rng.normal(0, 0.45))
    if rng.random() < 0.6:
        pixels = pixels * np.exp(rng.normal(0, 0.12, 3))
    if rng.random() < 0.4:
        pixels = pixels + rng.standard_normal((SIDE, SIDE, 1)) * rng.exponential(0.03)
    return _grey(pixels) if rng.random() < 0.15 else pixels.astype(np.float32)


def _focus(pixels: Pixels, rng: Random) -> Pixels:
    if rng.random() < 0.45:
        return pixels
    image = Image.fromarray(_bytes(pixels))
    if rng.random() < 0.3:
        return _floats(image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 2), int(rng.uniform(50, 250)), 0)))
    return _floats(image.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(np.log(0.3), np.log(2.5)))))))


def _saturation(rng: Random) -> float:
    return float(rng.choice([rng.uniform(0, 0.3), rng.uniform(0.3, 1), rng.uniform(1, 2.5)]))


def _grey(pixels: Pixels) -> Pixels:
    return np.repeat(pixels @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=-1).astype(np.float32)
