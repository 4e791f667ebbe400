"""Render the drawn sample scenes and the exact masks of their objects.

    python sample_images/render.py            # rewrites images/CLASS/NAME.png and truth/CLASS/NAME.png
    python sample_images/render.py -o DIR     # the same, elsewhere
    python sample_images/render.py --seed 7   # other clouds, waves and grass, the same objects

Every scene is drawn on a grid ``SCALE`` times finer than the picture and averaged down, which smooths the edges;
a mask pixel is 255 where the object covers at least half of it. Coordinates are in hundredths of the picture's
side, x to the right, y down; colours are RGB in [0, 1]; the light comes from the upper left.
The same seed gives the same bytes with the same versions of NumPy, OpenCV and Pillow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = 160  # side of a picture in pixels
SCALE = 4  # fine samples per pixel and axis
GRID = SIZE * SCALE
UNIT = GRID / 100  # fine samples per unit of the drawing

Region = NDArray[np.bool_]  # [GRID, GRID]: which fine samples a shape covers
Field = NDArray[np.float32]  # [GRID, GRID]: one number per fine sample
Paint = NDArray[np.float32]  # [GRID, GRID, 3]: a colour per fine sample
Colour = tuple[float, float, float]
Point = tuple[float, float]
Disc = tuple[float, float, float]  # x, y, radius

_AXIS = (np.arange(GRID, dtype=np.float32) + 0.5) / np.float32(UNIT)
X: Field = np.broadcast_to(_AXIS[None, :], (GRID, GRID))
Y: Field = np.broadcast_to(_AXIS[:, None], (GRID, GRID))


# ---------------------------------------------------------------- shapes


def spline(knots: Sequence[Sequence[float]], closed: bool, steps: int = 14) -> NDArray[np.float64]:
    """Return a Catmull-Rom curve through ``knots`` [N, D] as [M, D], ``steps`` samples per knot."""
    k = np.asarray(knots, dtype=np.float64)
    around = np.concatenate([k[-1:], k, k[:2]]) if closed else np.concatenate([k[:1], k, k[-1:]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(around, around[1:], around[2:], around[3:], strict=False):
        pieces.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return np.concatenate(pieces if closed else [*pieces, k[-1:]])


def polygon(points: Sequence[Sequence[float]] | NDArray[np.float64]) -> Region:
    """Return what a polygon with straight edges covers."""
    canvas = np.zeros((GRID, GRID), np.uint8)
    fixed = np.rint((np.asarray(points, np.float64) * UNIT - 0.5) * 16).astype(np.int32)  # 4 fractional bits
    cv2.fillPoly(canvas, [fixed], 1, shift=4)
    return canvas.astype(bool)


def blob(knots: Sequence[Point]) -> Region:
    """Return what a smooth closed curve through ``knots`` covers."""
    return polygon(spline(knots, closed=True))


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Region:
    """Return an upright rectangle whose corners are rounded with radius ``corner``."""
    dx = np.abs(X - (left + right) / 2) - ((right - left) / 2 - corner)
    dy = np.abs(Y - (top + bottom) / 2) - ((bottom - top) / 2 - corner)
    inside: Region = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) <= corner
    return inside


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0) -> Region:
    """Return an ellipse with half axes ``rx`` and ``ry``, turned clockwise by ``tilt`` degrees."""
    cos, sin = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    u, v = (X - x) * cos + (Y - y) * sin, (Y - y) * cos - (X - x) * sin
    inside: Region = (u / rx) ** 2 + (v / ry) ** 2 <= 1
    return inside


def limb(discs: Sequence[Disc]) -> Region:
    """Return a smooth tube through ``discs``, whose thickness follows their radii."""
    path = spline(discs, closed=False, steps=40)
    canvas = np.zeros((GRID, GRID), np.uint8)
    for x, y, radius in path:
        centre = np.rint((np.array([x, y]) * UNIT - 0.5) * 16).astype(int)
        cv2.circle(canvas, (int(centre[0]), int(centre[1])), round(max(radius, 0.05) * UNIT * 16), 1, -1, shift=4)
    return canvas.astype(bool)


def union(*regions: Region) -> Region:
    """Return what any of ``regions`` covers."""
    covered: Region = np.logical_or.reduce(regions)
    return covered


def turned(points: Sequence[Point], degrees: float, about: Point = (50.0, 50.0)) -> list[Point]:
    """Return ``points`` turned clockwise about a point."""
    cos, sin = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    moved = [(x - about[0], y - about[1]) for x, y in points]
    return [(about[0] + x * cos - y * sin, about[1] + x * sin + y * cos) for x, y in moved]


# ---------------------------------------------------------------- paint


def soften(field: NDArray[np.generic], sigma: float) -> Field:
    """Return a [GRID, GRID] field blurred with a Gaussian of ``sigma`` units."""
    blurred = cv2.GaussianBlur(field.astype(np.float32), (0, 0), sigma * UNIT, borderType=cv2.BORDER_REPLICATE)
    return blurred.astype(np.float32)


def noise(rng: np.random.Generator, wide: float, high: float, octaves: int = 4) -> Field:
    """Return smooth fractal noise, about [-1, 1], whose coarsest lumps are ``wide`` × ``high`` units."""
    total = np.zeros((GRID, GRID), np.float32)
    for octave in range(octaves):
        rows, columns = (round(100 / size * 2**octave) + 3 for size in (high, wide))
        lattice = rng.uniform(-1, 1, (min(rows, GRID), min(columns, GRID))).astype(np.float32)
        total += cv2.resize(lattice, (GRID, GRID), interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return total / np.float32(1.4)


def ramp(position: Field, stops: Sequence[tuple[float, Colour]]) -> Paint:
    """Return the colours that ``stops`` (position, colour) give at each value of ``position``."""
    places = [place for place, _ in stops]
    channels = [np.interp(position, places, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def step(field: Field, low: float, high: float) -> Field:
    """Return 0 below ``low``, 1 above ``high`` and a smooth rise between."""
    t = np.clip((field - low) / (high - low), 0, 1)
    smooth: Field = (t * t * (3 - 2 * t)).astype(np.float32)
    return smooth


class Scene:
    """A picture in the making.

    :ivar rng: the scene's random numbers.
    :ivar paint: the colours so far, [GRID, GRID, 3] in [0, 1].
    :ivar thing: the fine samples that show the object, [GRID, GRID].
    """

    def __init__(self, rng: np.random.Generator, ground: Paint) -> None:
        self.rng = rng
        self.paint = ground.copy()
        self.thing: Region = np.zeros((GRID, GRID), bool)

    def cover(self, region: Region, colour: Colour | Paint, bulge: float = 0.0, relief: float = 0.5) -> None:
        """Paint scenery. ``bulge`` (units) shades it as if it swelled by about that much, ``relief`` strong."""
        fill = np.broadcast_to(np.asarray(colour, np.float32), self.paint.shape)[region]
        if bulge:
            height = soften(region, bulge)
            down, right = np.gradient(height, 1 / UNIT)
            light: Field = np.asarray(1 + relief * bulge * (2.0 * down + 1.2 * right), np.float32)
            fill = fill * light[region][:, None].clip(0.25, 1.7)
        self.paint[region] = fill
        self.thing[region] = False

    def add(self, region: Region, colour: Colour | Paint, bulge: float = 0.0, relief: float = 0.5) -> None:
        """Paint a part of the object, as :meth:`cover` paints scenery."""
        self.cover(region, colour, bulge, relief)
        self.thing[region] = True

    def blend(self, alpha: NDArray[np.float32], colour: Colour | Paint) -> None:
        """Mix ``colour`` in by ``alpha`` [GRID, GRID] in [0, 1]; what is object stays object."""
        a = alpha[:, :, None]
        self.paint = (self.paint * (1 - a) + np.asarray(colour, np.float32) * a).astype(np.float32)

    def shadow(self, region: Region, depth: float, soft: float) -> None:
        """Darken what lies under ``region`` by ``depth``, with an edge ``soft`` units wide."""
        self.paint *= (1 - depth * soften(region, soft))[:, :, None]

    def grain(self, region: Region, strength: float, wide: float, high: float, octaves: int = 3) -> None:
        """Vary the brightness of ``region`` by noise: fur, feathers, asphalt, grass."""
        self.paint *= (1 + region * strength * noise(self.rng, wide, high, octaves))[:, :, None]

    def finish(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the picture, uint8 [SIZE, SIZE, 3], and the object's mask, uint8 [SIZE, SIZE], 0 or 255."""
        colours = self.paint.clip(0, 1).reshape(SIZE, SCALE, SIZE, SCALE, 3).mean(axis=(1, 3), dtype=np.float64)
        colours += self.rng.normal(0, 0.004, (SIZE, SIZE, 1))  # a sensor's noise: no drawing is this clean
        cover = self.thing.reshape(SIZE, SCALE, SIZE, SCALE).mean(axis=(1, 3), dtype=np.float64)
        picture = np.rint(colours.clip(0, 1) * 255).astype(np.uint8)
        return picture, np.where(cover >= 0.5, 255, 0).astype(np.uint8)


# ---------------------------------------------------------------- backgrounds


def sky(rng: np.random.Generator, top: Colour, bottom: Colour, clouds: float, horizon: float = 100.0) -> Paint:
    """Return a sky that fades from ``top`` to ``bottom`` at y = ``horizon``, with ``clouds`` (0 to 1) in it."""
    paint = ramp(Y, [(0, top), (horizon, bottom)])
    lumps = noise(rng, 55, 22, 6)
    alpha = step(lumps, 0.45 - 0.6 * clouds, 1.1 - 0.6 * clouds) * np.float32(0.9)
    shade = 0.93 + 0.1 * noise(rng, 30, 14, 3)
    white = np.stack([shade, shade, shade * 1.01], axis=-1)
    mixed: Paint = (paint * (1 - alpha[:, :, None]) + white * alpha[:, :, None]).clip(0, 1).astype(np.float32)
    return mixed


def sea(scene: Scene, horizon: float, far: Colour, near: Colour) -> None:
    """Lay a sea under y = ``horizon``: waves grow towards the viewer, their crests glitter."""
    depth = np.clip((Y - horizon) / (100 - horizon), 0, 1).astype(np.float32)
    fine, middle, coarse = (noise(scene.rng, wide, wide / 6, 3) for wide in (9, 22, 45))
    waves = fine * (1 - depth) * 0.6 + middle * (0.3 + 0.5 * depth) + coarse * depth * 0.7
    water = ramp(depth, [(0, far), (1, near)]) * (1 + 0.22 * waves)[:, :, None]
    scene.cover(horizon < Y, water.astype(np.float32))
    glitter = step(waves, 0.55, 1.0) * (horizon < Y) * np.float32(0.55)
    scene.blend(glitter, (0.86, 0.93, 0.96))


def meadow(scene: Scene, horizon: float, far: Colour, near: Colour) -> None:
    """Lay grass under y = ``horizon``: upright blades, longer towards the viewer."""
    depth = np.clip((Y - horizon) / (100 - horizon), 0, 1).astype(np.float32)
    blades = noise(scene.rng, 1.6, 7, 3) * (0.25 + 0.75 * depth) + 0.7 * noise(scene.rng, 30, 9, 4)
    tint = ramp(depth, [(0, far), (1, near)]) * (1 + 0.3 * blades)[:, :, None]
    edge = horizon + 0.8 * noise(scene.rng, 10, 200, 3)
    scene.cover(edge < Y, tint.astype(np.float32))


def road(scene: Scene, horizon: float, kerb: float, dash: float) -> None:
    """Lay asphalt under y = ``horizon``, with a kerb ``kerb`` units high and a dashed line at y = ``dash``."""
    speckle = 1 + 0.16 * noise(scene.rng, 2.2, 1.6, 3) + 0.12 * noise(scene.rng, 60, 12, 3)
    asphalt = ramp(Y, [(horizon, (0.50, 0.50, 0.51)), (100, (0.36, 0.36, 0.38))]) * speckle[:, :, None]
    scene.cover(horizon < Y, asphalt.astype(np.float32))
    scene.cover((horizon < Y) & (horizon + kerb > Y), (0.72, 0.71, 0.68))
    scene.grain((horizon < Y) & (horizon + kerb > Y), 0.12, 5, 3)
    along = X - 1.5 * (Y - dash)  # the dashes lean, as seen from the side of the road
    scene.cover((np.abs(Y - dash) < 1.3) & (np.mod(along, 34) < 19), (0.88, 0.87, 0.80))


def trees(scene: Scene, base: float, height: float, dark: Colour, light: Colour) -> None:
    """Stand a row of bushy trees with their feet at y = ``base``."""
    line = base - height * (0.75 + 0.3 * noise(scene.rng, 22, 300, 2)) + 1.6 * noise(scene.rng, 5, 5, 3)
    leaves = noise(scene.rng, 9, 8, 5)
    tint = ramp(leaves, [(-0.8, dark), (0.9, light)])
    scene.cover((line < Y) & (base > Y), tint)


def foliage(rng: np.random.Generator, dark: Colour, light: Colour, lump: float = 40.0) -> Paint:
    """Return leaves far out of focus: soft lumps of colour from ``dark`` to ``light``."""
    paint = ramp(noise(rng, lump, lump, 2), [(-0.8, dark), (0.8, light)])
    for _ in range(14):
        x, y, radius = rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(4, 11)
        glow = soften(ellipse(x, y, radius, radius), 1.2)[:, :, None] * np.float32(rng.uniform(0.05, 0.2))
        paint = paint * (1 - glow) + np.asarray(light, np.float32) * 1.25 * glow
    return paint.clip(0, 1).astype(np.float32)


# ---------------------------------------------------------------- parts that several scenes share
# Outlines are read along the line, not one point per line.
# fmt: off


def wheel(scene: Scene, x: float, y: float, radius: float, rim: Colour = (0.75, 0.76, 0.78)) -> None:
    """Add a tyre with a spoked rim."""
    scene.add(ellipse(x, y, radius, radius), (0.07, 0.07, 0.08), bulge=1.2, relief=0.8)
    scene.add(ellipse(x, y, radius * 0.66, radius * 0.66), (0.30, 0.31, 0.33))
    scene.add(ellipse(x, y, radius * 0.60, radius * 0.60), rim, bulge=1.0)
    for turn in range(5):
        spoke = turned([(x - 0.9, y - radius * 0.3), (x + 0.9, y - radius * 0.3),
                        (x + 1.3, y - radius * 0.55), (x - 1.3, y - radius * 0.55)], 72 * turn, (x, y))
        scene.add(polygon(spoke), (0.25, 0.26, 0.28))
    scene.add(ellipse(x, y, radius * 0.16, radius * 0.16), (0.45, 0.46, 0.48))


def glass(scene: Scene, region: Region, top: float, bottom: float) -> None:
    """Add a window that mirrors the sky in its upper half."""
    scene.add(region, ramp(Y, [(top, (0.62, 0.74, 0.82)), ((top + bottom) / 2, (0.24, 0.32, 0.38)),
                               (bottom, (0.10, 0.13, 0.16))]))
    streak = region & (np.abs(np.mod(X + 0.8 * Y, 26) - 13) < 1.6)
    scene.blend(soften(streak, 0.3) * np.float32(0.35), (0.9, 0.95, 1.0))


def eye(scene: Scene, x: float, y: float, radius: float, iris: Colour) -> None:
    """Add an eye with a pupil and a glint."""
    scene.add(ellipse(x, y, radius, radius), (0.05, 0.04, 0.04))
    scene.add(ellipse(x, y, radius * 0.78, radius * 0.78), iris)
    scene.add(ellipse(x, y, radius * 0.5, radius * 0.5), (0.02, 0.02, 0.02))
    scene.add(ellipse(x - radius * 0.3, y - radius * 0.35, radius * 0.2, radius * 0.2), (1.0, 1.0, 1.0))


# ---------------------------------------------------------------- ships


def freighter(rng: np.random.Generator) -> Scene:
    """Draw a container ship under way, seen from the side."""
    scene = Scene(rng, sky(rng, (0.22, 0.48, 0.78), (0.66, 0.80, 0.90), 0.12, 50))
    sea(scene, 50, (0.42, 0.56, 0.64), (0.06, 0.24, 0.38))
    hull = polygon([*spline([(7, 52), (20, 56), (50, 58), (76, 57), (95, 50)], False), (92, 58), (87, 73), (86, 77),
                    (13, 77), (9, 68)])
    scene.shadow(box(12, 75, 90, 85, 3), 0.55, 2.0)
    _containers(scene)
    _bridge(scene)
    scene.add(hull, ramp(Y, [(50, (0.13, 0.22, 0.42)), (62, (0.09, 0.16, 0.34)), (70, (0.06, 0.11, 0.25))]))
    scene.add(hull & (Y > 70), ramp(Y, [(70, (0.66, 0.14, 0.12)), (77, (0.40, 0.07, 0.07))]))
    scene.add(hull & (np.abs(Y - 69.6) < 0.5), (0.9, 0.9, 0.88))
    rail = soften(hull & ~np.roll(hull, round(1.0 * UNIT), axis=0), 0.2)
    scene.blend(rail * np.float32(0.8), (0.85, 0.88, 0.92))
    scene.add(ellipse(85.5, 61, 1.1, 1.1), (0.75, 0.77, 0.8))
    scene.grain(hull, 0.07, 14, 5)
    _bow_wave(scene, 86, 76.5, 12)
    return scene


def _bridge(scene: Scene) -> None:
    for left, top, right, bottom in ((11, 48.5, 33, 58), (12, 42, 31, 48.5), (13, 35.5, 33, 42)):
        front = ramp(X, [(left, (1.0, 0.99, 0.95)), (right - 3, (0.93, 0.93, 0.90)), (right, (0.74, 0.77, 0.80))])
        scene.add(box(left, top, right, bottom), front)
        scene.add(box(left - 0.8, top, right + 0.8, top + 1.0), (0.62, 0.66, 0.70))
    glass(scene, box(15, 37.4, 32.4, 40.2), 36, 42)
    for y in (44.4, 50.6, 54.2):
        for x in np.arange(14, 30, 3.4):
            scene.add(box(x, y, x + 1.7, y + 1.9, 0.4), (0.16, 0.22, 0.30))
    funnel = ramp(X, [(15, (0.95, 0.42, 0.18)), (23, (0.68, 0.20, 0.09))])
    scene.add(polygon([(14.6, 35.5), (15.4, 24), (21.6, 24), (22.4, 35.5)]), funnel)
    scene.add(box(15, 22.6, 22, 26), (0.10, 0.10, 0.11))
    scene.add(limb([(27.5, 35, 0.55), (27.5, 17, 0.4)]), (0.93, 0.93, 0.92))
    scene.add(limb([(24.5, 23, 0.4), (30.5, 23, 0.4)]), (0.93, 0.93, 0.92))


def _containers(scene: Scene) -> None:
    colours = ((0.80, 0.30, 0.16), (0.18, 0.42, 0.60), (0.86, 0.66, 0.20), (0.25, 0.50, 0.32), (0.75, 0.76, 0.74),
               (0.58, 0.16, 0.18))
    for column, rows in enumerate((2, 3, 4, 3, 3, 2)):
        for row in range(rows):
            left, top = 36.5 + 7.2 * column, 54.6 - 4.8 * row
            colour = colours[int(scene.rng.integers(len(colours)))]
            scene.add(box(left, top, left + 6.8, top + 4.6), (0.12, 0.12, 0.13))
            ribs = 1 - 0.16 * (np.mod(X - left, 0.9) < 0.4)
            tint = np.asarray(colour, np.float32) * ribs[:, :, None] * (1.06 - 0.03 * (Y - top))[:, :, None]
            scene.add(box(left + 0.15, top + 0.15, left + 6.6, top + 4.4), tint.astype(np.float32))
    scene.add(limb([(84, 54, 0.7), (84, 34, 0.5)]), (0.88, 0.78, 0.42))
    scene.add(limb([(84, 36, 0.5), (91, 47, 0.35)]), (0.88, 0.78, 0.42))


def _bow_wave(scene: Scene, x: float, y: float, left: float) -> None:
    crest = noise(scene.rng, 7, 7, 4)
    swell = 1.3 + 2.6 * np.exp(-(((X - x) / 7) ** 2)) + 1.2 * np.exp(-(((X - left) / 6) ** 2))
    band = np.abs(Y - y - 0.6 * crest) < swell * (0.55 + 0.5 * crest)
    scene.cover(band & (left - 9 < X) & (x + 9 > X), ramp(crest, [(-1, (0.66, 0.78, 0.84)), (0.6, (0.97, 0.98, 0.99))]))
    trail = step(noise(scene.rng, 30, 4, 4), 0.1, 0.9) * np.exp(-(((Y - y - 5) / 4) ** 2)).astype(np.float32)
    scene.blend((trail * 0.7 * ~scene.thing).astype(np.float32), (0.92, 0.96, 0.98))


def sailboat(rng: np.random.Generator) -> Scene:
    """Draw a small yacht under sail, heeling a little."""
    scene = Scene(rng, sky(rng, (0.20, 0.48, 0.80), (0.75, 0.87, 0.94), 0.25, 64))
    _coast(scene, 64)
    sea(scene, 64, (0.25, 0.50, 0.62), (0.03, 0.22, 0.40))
    scene.shadow(box(24, 83, 82, 89, 3), 0.5, 2.0)
    hull = polygon([*spline([(15, 73), (35, 76), (60, 76), (88, 71)], False), *spline(
        [(88, 71), (80, 81), (70, 86), (30, 86), (20, 82), (15, 73)], False)])
    scene.add(polygon([(35, 76), (38, 71), (58, 71.5), (64, 76)]), (0.93, 0.92, 0.88), bulge=1.0)
    for x in (41, 46.5, 52):
        scene.add(ellipse(x, 73.5, 1.5, 0.9), (0.13, 0.20, 0.27))
    scene.add(hull, ramp(Y, [(71, (0.98, 0.98, 0.96)), (80, (0.80, 0.83, 0.86)), (86, (0.52, 0.57, 0.63))]))
    scene.add(hull & (np.abs(Y - 77.5 + 0.012 * (X - 50)) < 0.8), (0.10, 0.22, 0.50))
    scene.add(hull & (Y > 83.2), (0.50, 0.10, 0.10))
    scene.add(limb([(50, 75, 0.8), (53, 8, 0.5)]), (0.75, 0.68, 0.55))
    _sails(scene)
    _bow_wave(scene, 80, 86, 22)
    return scene


def _coast(scene: Scene, horizon: float) -> None:
    ridge = horizon - 4.5 - 3.5 * noise(scene.rng, 40, 400, 4)
    scene.cover((ridge < Y) & (horizon > Y), (0.42, 0.55, 0.60))
    scene.grain((ridge < Y) & (horizon > Y), 0.12, 8, 4)


def _sails(scene: Scene) -> None:
    main = polygon([(51, 68), (52.6, 11), *spline([(52.6, 11), (36, 42), (20, 67)], False)])
    jib = polygon([(54, 14), *spline([(54, 14), (70, 42), (86, 69)], False), (58, 67)])
    for sail, dark, light in ((main, (0.74, 0.76, 0.80), (1.0, 0.99, 0.96)),
                              (jib, (0.70, 0.73, 0.78), (0.98, 0.97, 0.93))):
        scene.add(sail, ramp(X, [(20, light), (50, dark), (54, light), (86, dark)]), bulge=3, relief=0.35)
        scene.paint *= (1 - 0.10 * (sail & (np.mod(Y - 0.18 * X, 11) < 0.5)))[:, :, None]
    scene.add(limb([(51, 69, 0.6), (19, 68.5, 0.5)]), (0.60, 0.52, 0.40))


def cruiser(rng: np.random.Generator) -> Scene:
    """Draw a motor cruiser speeding home at dusk."""
    dusk = ramp(Y, [(0, (0.34, 0.40, 0.62)), (30, (0.80, 0.58, 0.52)), (52, (0.99, 0.80, 0.52))])
    scene = Scene(rng, dusk)
    streaks = step(noise(rng, 70, 7, 5), 0.1, 0.9) * np.float32(0.5)
    scene.blend(streaks, (0.98, 0.72, 0.56))
    _coast(scene, 52)
    sea(scene, 52, (0.74, 0.60, 0.50), (0.10, 0.16, 0.28))
    scene.shadow(box(14, 75, 84, 84, 3), 0.5, 2.0)
    hull = polygon([*spline([(9, 61), (40, 61.5), (70, 59), (96, 51)], False),
                    *spline([(96, 51), (88, 63), (78, 73), (66, 77.5), (12, 78.5), (9, 61)], False)])
    _wheelhouse(scene)
    scene.add(hull, ramp(Y, [(51, (1.0, 0.97, 0.92)), (64, (0.90, 0.88, 0.88)), (78, (0.50, 0.52, 0.60))]))
    scene.add(polygon([*spline([(9, 66), (45, 66), (74, 63), (92.5, 57)], False), (90.8, 59.5),
                       *spline([(76, 66), (45, 69), (9, 69)], False)]), (0.12, 0.18, 0.36))
    for x in (50, 58, 66):
        scene.add(ellipse(x, 63.6 - (x - 50) * 0.08, 1.7, 0.9), (0.10, 0.12, 0.18))
    for x, y in ((66, 53.5), (75, 52), (84, 49.5), (93, 46)):
        scene.add(limb([(x, y, 0.35), (x + 0.8, y + 7, 0.35)]), (0.92, 0.90, 0.88))
    scene.add(limb([(62, 54, 0.4), (75, 52, 0.4), (94, 45.5, 0.4)]), (0.95, 0.93, 0.90))
    _bow_wave(scene, 76, 78, 10)
    return scene


def _wheelhouse(scene: Scene) -> None:
    cabin = polygon([(22, 62), (22, 50), (60, 50), (72, 60), (60, 62)])
    scene.add(cabin, ramp(X, [(22, (0.80, 0.78, 0.80)), (72, (0.99, 0.96, 0.90))]))
    glass(scene, polygon([(26, 52.5), (58, 52.5), (65, 58.5), (26, 58.5)]), 50, 60)
    for x in (36, 47):
        scene.add(box(x, 52, x + 1.2, 59), (0.90, 0.88, 0.87))
    scene.add(polygon([(27, 50), (24, 38), (27, 38), (30, 50)]), (0.78, 0.76, 0.78))
    scene.add(polygon([(42, 50), (50, 40), (52, 40), (54, 50)]), (0.14, 0.17, 0.24))
    scene.add(box(21, 36.5, 53, 39.6, 1.4), (0.97, 0.94, 0.90), bulge=1.0)
    scene.add(polygon([(28, 50), (28, 46), (46, 46), (46, 50)]), (0.86, 0.84, 0.84))
    scene.add(limb([(34, 37, 0.5), (32, 24, 0.35)]), (0.86, 0.84, 0.84))
    scene.add(ellipse(35, 33.6, 3.6, 1.3), (0.98, 0.96, 0.94))


# ---------------------------------------------------------------- airplanes


def airliner(rng: np.random.Generator) -> Scene:
    """Draw an airliner climbing to the right."""
    scene = Scene(rng, sky(rng, (0.16, 0.42, 0.78), (0.62, 0.80, 0.93), 0.35))
    tilt = -13.0

    def part(points: Sequence[Point]) -> Region:
        return polygon(turned(points, tilt))

    scene.add(part([(61, 47), (46, 23), (40.5, 23), (45, 47)]), (0.50, 0.55, 0.63))
    scene.add(part([(22, 48), (14, 40), (9, 40), (12, 49)]), (0.50, 0.55, 0.63))
    fin = part([(13, 47.5), (10.5, 26), (17, 26), (30, 45)])
    scene.add(fin, ramp(Y, [(28, (0.85, 0.20, 0.16)), (56, (0.60, 0.10, 0.12))]))
    hull = blob(turned([(95, 52), (91, 47.5), (84, 44.6), (70, 43.8), (30, 44), (14, 46), (4, 47.5), (5, 49.5),
                        (18, 54), (34, 56.8), (70, 57.2), (86, 56.4), (92, 54.6)], tilt))
    scene.add(hull, (0.93, 0.94, 0.96), bulge=4.5, relief=0.75)
    _livery(scene, hull, tilt)
    scene.add(part([(22, 50), (10, 58.5), (5, 58.5), (11, 50.5)]), (0.80, 0.83, 0.87))
    wing = part([(63, 54), (34, 83), (27, 84.5), (42, 55)])
    scene.add(wing, ramp(Y, [(48, (0.88, 0.90, 0.93)), (90, (0.62, 0.66, 0.71))]))
    scene.add(part([(44.5, 58), (28, 84.3), (27, 84.5), (42, 55)]), (0.55, 0.59, 0.64))
    engine = turned([(47, 62), (60, 61.5), (61, 68.5), (48, 68)], tilt)
    scene.add(blob(engine), (0.82, 0.84, 0.88), bulge=2.0, relief=0.8)
    mouth = turned([(60.4, 65)], tilt)[0]
    scene.add(ellipse(*mouth, 1.9, 3.6, tilt), (0.10, 0.11, 0.13))
    return scene


def _livery(scene: Scene, hull: Region, tilt: float) -> None:
    for x in np.arange(22, 82, 2.7):
        (spot,) = turned([(float(x), 49.2)], tilt)
        scene.add(ellipse(*spot, 0.75, 0.95), (0.10, 0.14, 0.22))
    stripe = polygon(turned([(6, 51.4), (93, 51.4), (91, 53.0), (12, 53.0)], tilt)) & hull
    scene.add(stripe, (0.78, 0.16, 0.14))
    cockpit = polygon(turned([(86.5, 47.6), (90.8, 48.2), (92.2, 50.2), (87.5, 50.2)], tilt))
    scene.add(cockpit & hull, (0.08, 0.10, 0.14))


def propeller(rng: np.random.Generator) -> Scene:
    """Draw a single-engined sports aeroplane banking over the clouds, seen from above."""
    scene = Scene(rng, sky(rng, (0.20, 0.46, 0.78), (0.46, 0.68, 0.88), 0.3))
    tilt = 50.0

    def part(points: Sequence[Point]) -> Region:
        return blob(turned(points, tilt))

    scene.shadow(part([(6, 52), (94, 52), (94, 62), (6, 62)]), 0.12, 5.0)
    red, white = (0.84, 0.16, 0.12), (0.96, 0.95, 0.92)
    wing = part([(5, 43), (7, 38.5), (11, 37), (30, 35.4), (50, 34), (70, 35.4), (89, 37), (93, 38.5), (95, 43),
                 (93, 47.5), (89, 49), (70, 50.2), (50, 51), (30, 50.2), (11, 49), (7, 47.5)])
    scene.add(wing, white, bulge=2.5, relief=0.5)
    for x in (14, 80):
        scene.add(wing & polygon(turned([(x, 30), (x + 6, 30), (x + 6, 55), (x, 55)], tilt)), red, bulge=2)
    tail = part([(31, 85.5), (33, 82), (40, 81), (50, 80.5), (60, 81), (67, 82), (69, 85.5), (67, 89), (60, 90),
                 (50, 90), (40, 90), (33, 89)])
    scene.add(tail, red, bulge=1.5)
    body = part([(50, 10), (55, 14), (57.5, 24), (57.5, 45), (54, 70), (51.5, 92), (48.5, 92), (46, 70), (42.5, 45),
                 (42.5, 24), (45, 14)])
    scene.add(body, white, bulge=3.5, relief=0.8)
    scene.add(body & polygon(turned([(40, 5), (60, 5), (60, 22), (40, 22)], tilt)), red, bulge=3)
    glass(scene, part([(45.5, 38), (50, 35), (54.5, 38), (54, 52), (50, 58), (46, 52)]), 30, 60)
    scene.add(part([(49.3, 78), (50.7, 78), (51, 95), (49, 95)]), (0.62, 0.10, 0.08))
    scene.add(limb([(*p, 0.6) for p in turned([(37, 10.5), (63, 10.5)], tilt)]), (0.25, 0.22, 0.20))
    scene.add(part([(48, 10), (50, 6), (52, 10), (50, 12)]), (0.75, 0.76, 0.78))
    return scene


# ---------------------------------------------------------------- road vehicles


def lorry(rng: np.random.Generator) -> Scene:
    """Draw a lorry with a white box body on a country road."""
    scene = Scene(rng, sky(rng, (0.52, 0.70, 0.88), (0.88, 0.92, 0.94), 0.4, 60))
    trees(scene, 60, 22, (0.10, 0.22, 0.10), (0.36, 0.50, 0.22))
    meadow(scene, 58, (0.42, 0.54, 0.26), (0.36, 0.48, 0.20))
    road(scene, 68, 1.6, 93)
    scene.shadow(box(6, 79, 96, 86, 3), 0.75, 1.6)
    scene.add(box(8, 66, 92, 75), (0.12, 0.12, 0.13))
    _cargo_box(scene)
    _cab(scene)
    for x in (21, 34, 80):
        scene.add(ellipse(x, 75.5, 8.6, 8.6) & (Y < 76), (0.05, 0.05, 0.06))
        wheel(scene, x, 76.5, 7.4)
    return scene


def _cargo_box(scene: Scene) -> None:
    body = box(5, 22, 65, 68)
    scene.add(body, ramp(Y, [(22, (0.98, 0.98, 0.97)), (68, (0.80, 0.82, 0.84))]))
    scene.paint *= (1 - 0.09 * (body & (np.mod(X - 5, 7.5) < 0.5)))[:, :, None]
    stripe = polygon([(5, 53), (65, 41), (65, 49), (5, 61)]) & body
    scene.add(stripe, ramp(X, [(5, (0.10, 0.34, 0.66)), (65, (0.16, 0.50, 0.80))]))
    scene.add(box(5, 21.2, 65, 23.4), (0.62, 0.64, 0.67))
    scene.add(box(5, 66.4, 65, 68.4), (0.40, 0.41, 0.43))
    scene.add(box(5, 22, 6.4, 68), (0.62, 0.64, 0.67))


def _cab(scene: Scene) -> None:
    cab = polygon([(67, 70), (67, 33), *spline([(67, 33), (72, 30.5), (86, 31)], False), (92.5, 50), (94, 56), (94, 74),
                   (67, 74)])
    scene.add(cab, ramp(Y, [(30, (0.30, 0.56, 0.86)), (52, (0.12, 0.36, 0.70)), (74, (0.07, 0.22, 0.50))]))
    scene.add(polygon([(67, 33), (69, 25), (79, 26), (85, 31.2)]), (0.14, 0.38, 0.72), bulge=2)
    glass(scene, polygon([(73, 36), (84.6, 36), (89.5, 50), (73, 50)]), 34, 51)
    scene.add(polygon([(86.6, 35), (88, 35), (92.6, 50), (91.0, 50)]), (0.72, 0.80, 0.86))
    scene.add(box(71.3, 35, 72.0, 68) | box(71.3, 68, 88, 68.6), (0.05, 0.14, 0.32))
    scene.add(box(74, 54, 78, 55.4, 0.5), (0.80, 0.82, 0.85))
    scene.add(box(91.4, 59, 94.4, 63.5, 0.8), (0.98, 0.94, 0.74))
    scene.add(box(88, 69.5, 95.5, 75, 1.2), (0.30, 0.31, 0.33))
    scene.add(box(92.4, 38, 94.6, 46, 0.8), (0.10, 0.10, 0.11))


def tipper(rng: np.random.Generator) -> Scene:
    """Draw a yellow tipper truck with a load of gravel in a quarry."""
    scene = Scene(rng, sky(rng, (0.58, 0.72, 0.86), (0.90, 0.91, 0.90), 0.5, 50))
    ridge = 44 - 7 * noise(rng, 45, 400, 4)
    scene.cover(ridge < Y, ramp(noise(rng, 20, 6, 5), [(-0.9, (0.55, 0.45, 0.36)), (0.9, (0.80, 0.71, 0.60))]))
    scene.cover(74 + noise(rng, 20, 300, 3) < Y, ramp(noise(rng, 7, 3, 4), [(-1, (0.46, 0.39, 0.32)),
                                                                          (1, (0.68, 0.60, 0.51))]))
    scene.shadow(box(6, 80, 96, 87, 3), 0.7, 1.8)
    scene.add(box(10, 66, 88, 74), (0.13, 0.13, 0.14))
    load = blob([(10, 34), (22, 24), (34, 19), (48, 23), (60, 34), (36, 38)])
    scene.add(load, ramp(noise(rng, 4, 4, 3), [(-1, (0.30, 0.28, 0.26)), (1, (0.58, 0.54, 0.50))]), bulge=4)
    _tub(scene)
    _tipper_cab(scene)
    for x in (20, 38, 79):
        scene.add(ellipse(x, 75, 9.6, 9.6) & (Y < 76), (0.05, 0.05, 0.06))
        wheel(scene, x, 77, 8.6, (0.82, 0.62, 0.16))
    return scene


def _tub(scene: Scene) -> None:
    tub = polygon([(3, 31), (63, 31), (59, 66), (13, 66)])
    scene.add(tub, ramp(Y, [(31, (0.98, 0.76, 0.16)), (66, (0.74, 0.50, 0.06))]))
    for x in (10, 21, 32, 43, 54):
        rib = polygon([(x, 31), (x + 3, 31), (x * 0.86 + 7.4, 66), (x * 0.86 + 4.6, 66)]) & tub
        scene.add(rib, ramp(Y, [(31, (0.86, 0.62, 0.10)), (66, (0.55, 0.36, 0.04))]))
    scene.add(box(2, 29.5, 64, 33.5, 1), (0.99, 0.80, 0.22), bulge=1)
    scene.grain(tub, 0.10, 10, 8, 4)


def _tipper_cab(scene: Scene) -> None:
    scene.add(polygon([(62, 24), (82, 24), (82, 28), (62, 31)]), (0.90, 0.66, 0.12), bulge=1)
    cab = polygon([(64, 72), (64, 30), (82, 29), (86, 48), (95, 51), (96, 72)])
    scene.add(cab, ramp(Y, [(29, (0.99, 0.80, 0.22)), (50, (0.95, 0.70, 0.12)), (72, (0.66, 0.44, 0.05))]))
    glass(scene, polygon([(67, 33), (80, 33), (83, 48), (67, 48)]), 32, 49)
    scene.add(box(65.4, 33, 66.0, 68) | box(84, 50, 84.6, 66), (0.45, 0.30, 0.04))
    scene.add(box(68, 52, 72, 53.4, 0.5), (0.20, 0.20, 0.20))
    for y in (54, 57, 60):
        scene.add(box(87, y, 94.5, y + 1.4), (0.30, 0.22, 0.06))
    scene.add(box(93, 62.5, 96.6, 66.5, 0.8), (0.99, 0.96, 0.80))
    scene.add(box(90, 68, 98, 74, 1), (0.16, 0.16, 0.17))


def saloon(rng: np.random.Generator) -> Scene:
    """Draw a red saloon car parked before a hedge."""
    scene = Scene(rng, sky(rng, (0.60, 0.76, 0.90), (0.90, 0.94, 0.95), 0.3, 40))
    trees(scene, 56, 30, (0.07, 0.18, 0.08), (0.32, 0.46, 0.20))
    meadow(scene, 54, (0.34, 0.48, 0.22), (0.30, 0.46, 0.18))
    road(scene, 62, 1.8, 94)
    scene.shadow(box(5, 77, 97, 83, 3), 0.8, 1.5)
    body = polygon([*spline([(3, 66), (3.5, 56), (8, 52), (19, 50.5), (25, 48.5), (36, 38), (46, 35), (57, 35.4),
                             (66, 39), (76, 48.5), (88, 51.5), (95, 55.5), (97.5, 62), (96, 71)], False),
                    (93, 75), (8, 75)])
    scene.add(body, ramp(Y, [(34, (0.95, 0.32, 0.26)), (48, (0.78, 0.09, 0.08)), (53.5, (0.95, 0.28, 0.22)),
                             (58, (0.76, 0.08, 0.08)), (75, (0.38, 0.03, 0.04))]))
    _saloon_glass(scene)
    _saloon_trim(scene, body)
    for x in (22, 78):
        scene.add(ellipse(x, 72.5, 10, 10) & (Y < 75), (0.04, 0.03, 0.03))
        wheel(scene, x, 73.5, 8.6)
    return scene


def _saloon_glass(scene: Scene) -> None:
    glass(scene, polygon([(27.5, 49), *spline([(37, 40), (41.5, 38.4), (48, 37.8)], False), (48.5, 49.5)]), 37, 50)
    glass(scene, polygon([(51, 49.5), (50.5, 37.8), *spline([(57, 38.2), (63.5, 40.4), (72.5, 49.5)], False)]), 37, 50)


def _saloon_trim(scene: Scene, body: Region) -> None:
    for seam in ([(49.7, 50, 0.25), (50, 60, 0.25), (49, 71, 0.25)], [(74, 50, 0.25), (73, 60, 0.25), (66, 71, 0.25)],
                 [(26.5, 50, 0.25), (29, 58, 0.25), (34, 64, 0.25)]):
        scene.add(limb([(x, y, r) for x, y, r in seam]), (0.35, 0.03, 0.04))
    for x in (43.5, 67.5):
        scene.add(box(x, 53.5, x + 4, 54.7, 0.5), (0.82, 0.80, 0.80))
    scene.add(body & box(4, 69.5, 97, 71.0), (0.20, 0.03, 0.04))
    scene.add(blob([(89, 54), (94.5, 56), (96, 59.5), (90, 58.5)]), (0.97, 0.96, 0.88))
    scene.add(blob([(3.6, 55.5), (8, 54), (9, 58.5), (3.6, 59.5)]), (0.62, 0.04, 0.06))
    scene.add(box(2.5, 65, 12, 71.5, 1.5), (0.50, 0.06, 0.07), bulge=1)
    scene.add(box(88, 65, 98, 71.5, 1.5), (0.50, 0.06, 0.07), bulge=1)
    scene.add(blob([(70, 47.5), (74, 46.5), (74.5, 50), (71, 50.5)]), (0.66, 0.07, 0.07))


# ---------------------------------------------------------------- animals


def robin(rng: np.random.Generator) -> Scene:
    """Draw a robin on a branch before leaves out of focus."""
    scene = Scene(rng, foliage(rng, (0.30, 0.42, 0.20), (0.66, 0.74, 0.42)))
    scene.cover(limb([(-5, 84, 3.4), (30, 81, 3.0), (65, 83, 2.6), (105, 77, 2.0)]), (0.40, 0.31, 0.24), bulge=1.5)
    scene.cover(limb([(70, 82, 1.4), (84, 90, 1.0), (92, 101, 0.8)]), (0.38, 0.29, 0.22), bulge=0.8)
    scene.grain(Y > 74, 0.14, 9, 2)
    for x in (48, 57):
        scene.add(limb([(x, 70, 0.9), (x + 1, 80, 0.8)]), (0.33, 0.22, 0.16))
        scene.add(limb([(x - 3, 81.5, 0.7), (x + 1, 80, 0.8), (x + 5, 81.5, 0.7)]), (0.33, 0.22, 0.16))
    brown = (0.47, 0.38, 0.27)
    scene.add(polygon([(24, 62), (33, 56), (14, 84), (8, 87), (5, 83)]), (0.33, 0.26, 0.19), bulge=1.2)
    body = blob([(82, 22), (74, 13), (62, 13), (53, 22), (42, 33), (29, 49), (24, 62), (33, 71), (50, 75), (66, 70),
                 (77, 57), (82, 42), (84, 30)])
    scene.add(body, brown, bulge=5, relief=0.75)
    _robin_plumage(scene, body)
    beak = polygon([(82.5, 23), (92.5, 27.5), (82.5, 29.5)])
    scene.add(beak, (0.20, 0.16, 0.13), bulge=0.8)
    eye(scene, 73.5, 22.5, 2.7, (0.14, 0.09, 0.06))
    return scene


def _robin_plumage(scene: Scene, body: Region) -> None:
    belly = blob([(80, 48), (70, 56), (56, 60), (42, 66), (34, 71), (50, 80), (70, 74), (84, 56)]) & body
    scene.blend(soften(belly, 1.6) * body * np.float32(0.85), (0.90, 0.87, 0.80))
    breast = blob([(84, 18), (76, 16), (70, 17), (68, 27), (62, 36), (61, 48), (67, 57), (78, 55), (88, 40), (88, 26)])
    scene.blend(soften(breast & body, 1.0) * body * np.float32(0.92), (0.90, 0.42, 0.12))
    wing = blob([(54, 35), (44, 38), (33, 50), (22, 66), (17, 74), (32, 69), (48, 61), (57, 49)])
    scene.add(wing, (0.42, 0.33, 0.23), bulge=2.5, relief=0.7)
    for offset in (0, 4, 8, 12):
        feather = limb([(52 - offset * 0.4, 46 + offset, 0.35), (38 - offset * 0.2, 55 + offset, 0.35),
                        (24, 68 + offset * 0.3, 0.3)])
        scene.blend(soften(feather & wing, 0.25) * np.float32(0.7), (0.20, 0.15, 0.11))
    scene.grain(body | wing, 0.13, 3.5, 2.2)


def buzzard(rng: np.random.Generator) -> Scene:
    """Draw a buzzard flying past a wood."""
    scene = Scene(rng, foliage(rng, (0.30, 0.42, 0.20), (0.66, 0.74, 0.42)))
    brown, dark, pale = (0.46, 0.34, 0.22), (0.20, 0.14, 0.10), (0.80, 0.70, 0.54)
    far = polygon([*spline([(62, 50), (64, 36), (71, 23), (81, 14), (93, 9)], False), (90, 14), (93, 16), (87, 21),
                   (89, 24), (83, 30), (84, 34), *spline([(80, 38), (74, 52)], False)])
    scene.add(far, ramp(X - Y, [(10, (0.40, 0.29, 0.19)), (60, (0.32, 0.23, 0.15)), (80, dark)]))
    tail = polygon([(34, 56), (12, 55), (7, 60), (6, 66), (10, 71), (34, 64)])
    scene.add(tail, ramp(np.mod(X, 5), [(0, brown), (3, brown), (3.4, dark), (5, dark)]), bulge=1.5)
    body = limb([(22, 61, 3.6), (36, 60, 7.4), (54, 57, 10.0), (68, 52, 8.6), (78, 47.5, 6.8), (81, 47, 6.0)])
    scene.add(body, brown, bulge=4, relief=0.8)
    chest = soften(blob([(84, 52), (70, 58), (54, 62), (36, 64), (52, 70), (74, 64)]) & body, 1.4) * body
    scene.blend((chest * 0.8).astype(np.float32), pale)
    scene.grain(body, 0.2, 2.6, 4)
    beak = blob([(86, 44.6), (90.5, 46), (92.4, 49.2), (91.4, 52), (89.4, 49.6), (86, 50)])
    scene.add(beak, (0.16, 0.15, 0.15), bulge=0.8)
    scene.add(blob([(85.4, 44.4), (88, 45.2), (88, 49.4), (85.4, 50)]), (0.90, 0.74, 0.20))
    eye(scene, 81.6, 45.4, 1.6, (0.62, 0.40, 0.14))
    _spread_wing(scene)
    return scene


def _spread_wing(scene: Scene) -> None:
    fingers = [(7, 10), (13, 15), (8, 18), (16, 22), (12, 26), (21, 30), (18, 34), (27, 39)]
    wing = polygon([*spline([(68, 53), (62, 36), (50, 22), (33, 12), (7, 8)], False), *fingers,
                    *spline([(27, 39), (34, 47), (43, 58), (55, 62)], False)])
    tint = ramp(X + 0.5 * Y, [(14, (0.17, 0.12, 0.09)), (36, (0.36, 0.26, 0.17)), (62, (0.46, 0.34, 0.22)),
                              (94, (0.52, 0.39, 0.26))])
    scene.add(wing, tint, bulge=2.2)
    bars = (np.mod(X * 0.75 - Y * 0.66, 6) < 2) & (Y > 0.72 * X + 4)
    scene.blend(soften(bars & wing, 0.4) * wing * np.float32(0.4), (0.76, 0.66, 0.50))
    rim = soften(wing & ~np.roll(wing, -round(1.6 * UNIT), axis=0), 0.4) * wing * (X > 24)
    scene.blend((rim * 0.5).astype(np.float32), (0.66, 0.54, 0.38))
    scene.grain(wing, 0.14, 4, 4)


def horse(rng: np.random.Generator) -> Scene:
    """Draw a bay horse on a pasture."""
    scene = Scene(rng, sky(rng, (0.56, 0.74, 0.90), (0.90, 0.94, 0.94), 0.4, 46))
    trees(scene, 48, 16, (0.14, 0.27, 0.14), (0.36, 0.50, 0.26))
    meadow(scene, 46, (0.52, 0.64, 0.30), (0.34, 0.50, 0.16))
    scene.shadow(ellipse(52, 92, 36, 3.2), 0.6, 1.6)
    dark = (0.27, 0.13, 0.07)
    for leg in ([(37, 56, 6.0), (40, 72, 3.2), (38, 88, 2.4)],
                [(72, 54, 7.5), (80, 69, 3.6), (77, 79, 2.6), (78, 89, 2.2)]):
        scene.add(limb(leg), dark, bulge=2.0)
        x, y, _ = leg[-1]
        scene.add(box(x - 2.9, y, x + 2.5, y + 3.6, 0.6), (0.12, 0.09, 0.07))
    scene.add(limb([(82, 38, 2.0), (89, 46, 3.2), (89, 62, 3.6), (86, 76, 1.0)]), (0.10, 0.07, 0.06), bulge=1.5)
    body = _horse_body()
    scene.add(body, (0.56, 0.28, 0.13), bulge=4.0, relief=0.9)
    scene.blend(soften(body & (Y > 68), 2.5) * body * np.float32(0.85), (0.13, 0.08, 0.06))
    for x, y in ((30, 87), (69, 88)):
        scene.add(box(x - 3.0, y, x + 2.6, y + 4.4, 0.7), (0.14, 0.11, 0.09))
    _horse_head(scene)
    scene.grain(body, 0.08, 5, 3)
    return scene


def _horse_body() -> Region:
    trunk = blob([(24, 42), (30, 37), (40, 36), (54, 38), (66, 35), (76, 35), (83, 41), (85, 51), (80, 59), (66, 61),
                  (50, 64), (36, 63), (28, 58), (24, 50)])
    neck = blob([(22, 50), (20, 38), (14, 25), (16, 14), (22, 12), (30, 20), (38, 36), (40, 50), (30, 56)])
    head = limb([(18, 17, 5.4), (13, 24, 4.8), (8, 33, 3.2), (6.5, 36, 3.0)])
    fore = limb([(31, 56, 6.4), (30, 70, 3.8), (30.5, 78, 2.7), (30, 88, 2.5)])
    hind = limb([(76, 50, 9.5), (73, 62, 6.2), (74, 71, 3.6), (70, 79, 2.7), (69, 89, 2.5)])
    return union(trunk, neck, head, fore, hind)


def _horse_head(scene: Scene) -> None:
    for ear in ([(18, 13), (17, 6), (22, 11)], [(21, 12), (22, 5.5), (25, 12)]):
        scene.add(polygon([(x, y) for x, y in ear]), (0.46, 0.22, 0.10))
    mane = limb([(19, 10, 1.4), (25, 12, 2.2), (32, 21, 3.0), (38, 31, 3.0), (41, 38, 1.0)])
    scene.add(mane, (0.10, 0.07, 0.06), bulge=1.5)
    scene.add(ellipse(14.5, 20.5, 1.2, 1.0), (0.04, 0.03, 0.03))
    scene.add(ellipse(5.6, 35.6, 0.9, 0.7), (0.10, 0.05, 0.04))
    scene.blend(soften(limb([(11, 22, 0.8), (6.5, 31, 0.8)]), 0.3) * np.float32(0.9), (0.95, 0.93, 0.90))


def stag(rng: np.random.Generator) -> Scene:
    """Draw a red deer stag at the edge of a wood."""
    scene = Scene(rng, foliage(rng, (0.16, 0.22, 0.11), (0.42, 0.46, 0.24), 26))
    meadow(scene, 58, (0.58, 0.53, 0.31), (0.52, 0.47, 0.25))
    scene.shadow(ellipse(50, 94, 32, 2.6), 0.5, 1.5)
    for leg in ([(42, 62, 4.6), (45, 76, 2.2), (44, 92, 1.5)],
                [(70, 60, 5.6), (77, 73, 2.6), (74, 82, 1.8), (75, 92, 1.5)]):
        scene.add(limb(leg), (0.30, 0.19, 0.11), bulge=1.5)
    body = _stag_body()
    scene.add(body, (0.50, 0.38, 0.26), bulge=3.6, relief=0.85)
    chest = soften(blob([(25, 40), (34, 40), (38, 58), (32, 64), (26, 56)]), 1.5) * body
    scene.blend((chest * 0.5).astype(np.float32), (0.34, 0.22, 0.13))
    scene.add(blob([(78, 47), (84, 46), (86, 54), (82, 58), (79, 53)]), (0.90, 0.83, 0.68), bulge=1.2)
    scene.blend(soften(body & (Y > 76), 2.0) * body * np.float32(0.6), (0.26, 0.17, 0.10))
    scene.grain(body, 0.10, 4, 3)
    _stag_head(scene)
    return scene


def _stag_body() -> Region:
    trunk = blob([(28, 52), (34, 46), (46, 46), (60, 46), (72, 44), (80, 47), (82, 55), (77, 63), (62, 65), (48, 67),
                  (36, 66), (29, 60)])
    neck = blob([(27, 57), (24, 46), (21, 36), (24, 30), (30, 29), (35, 36), (42, 47), (38, 58)])
    head = limb([(26, 32, 4.4), (19, 36, 3.6), (12, 41, 2.3), (10, 42, 2.0)])
    fore = limb([(35, 62, 5.0), (34, 76, 2.5), (34.5, 84, 1.8), (34, 94, 1.7)])
    hind = limb([(74, 56, 7.5), (71, 68, 4.4), (73, 76, 2.4), (69, 84, 1.8), (68, 94, 1.7)])
    return union(trunk, neck, head, fore, hind)


def _stag_head(scene: Scene) -> None:
    scene.add(blob([(30, 31), (34, 25), (40, 25), (36, 31)]), (0.48, 0.32, 0.19), bulge=1)
    horn = (0.66, 0.56, 0.42)
    for shift, tint in ((5.0, (0.46, 0.38, 0.28)), (0.0, horn)):
        beam = [(26 + shift, 29, 1.3), (24 + shift, 20, 1.2), (30 + shift, 11, 1.1), (29 + shift, 3, 0.6)]
        scene.add(limb(beam), tint, bulge=0.6)
        for x, y, dx, dy in ((25, 25, -8, -5), (25, 17, -8, -7), (29.5, 9, -7, -5), (29.5, 11, 8, -6)):
            scene.add(limb([(x + shift, y, 0.95), (x + shift + dx * 0.6, y + dy * 0.35, 0.8),
                            (x + shift + dx, y + dy, 0.45)]), tint)
    scene.add(ellipse(22, 32.5, 1.1, 0.95), (0.03, 0.02, 0.02))
    scene.add(ellipse(9.2, 41.4, 1.4, 1.2), (0.08, 0.06, 0.05))


def frog(rng: np.random.Generator) -> Scene:
    """Draw a tree frog sitting on a stone."""
    scene = Scene(rng, foliage(rng, (0.12, 0.10, 0.06), (0.36, 0.30, 0.18), 30))
    stone = blob([(-10, 84), (20, 78), (55, 80), (88, 77), (112, 84), (110, 112), (-10, 112)])
    scene.cover(stone, (0.52, 0.47, 0.42), bulge=4)
    scene.grain(stone, 0.2, 9, 7, 5)
    scene.shadow(ellipse(50, 84, 40, 3.5), 0.7, 1.8)
    green, pale = (0.42, 0.62, 0.16), (0.86, 0.88, 0.62)
    scene.add(limb([(30, 66, 7), (12, 74, 5), (26, 82, 3.6), (38, 84, 2.2)]), (0.30, 0.46, 0.12), bulge=2.5)
    body = blob([(12, 66), (20, 50), (36, 36), (54, 26), (70, 24), (84, 30), (92, 41), (88, 52), (78, 60), (68, 74),
                 (50, 82), (28, 82), (15, 77)])
    scene.add(body, green, bulge=5, relief=0.85)
    belly = body & blob([(92, 48), (76, 50), (60, 62), (52, 80), (70, 82), (94, 60)])
    scene.blend(soften(belly, 2.0) * body * np.float32(0.9), pale)
    _frog_skin(scene, body)
    thigh = blob([(12, 70), (22, 56), (38, 56), (46, 66), (38, 78), (20, 84)])
    scene.add(thigh, (0.38, 0.57, 0.15), bulge=3.5, relief=0.9)
    scene.add(limb([(18, 80, 3.4), (32, 83, 2.8), (48, 84.5, 2.2), (56, 86.5, 1.0)]), (0.36, 0.54, 0.14), bulge=1.4)
    arm = limb([(70, 58, 5), (72, 70, 3.8), (66, 80, 3.0), (72, 85, 2.2), (80, 86.5, 1.0)])
    scene.add(arm, (0.40, 0.59, 0.16), bulge=2)
    scene.add(limb([(91, 45, 0.5), (82, 49, 0.6), (70, 47, 0.5)]), (0.14, 0.22, 0.06))
    scene.add(ellipse(71, 29, 7.6, 7.6), (0.45, 0.65, 0.18), bulge=2.5)
    eye(scene, 72.5, 29, 5.4, (0.86, 0.62, 0.16))
    return scene


def _frog_skin(scene: Scene, body: Region) -> None:
    spots = step(noise(scene.rng, 9, 9, 2), 0.35, 0.6) * soften(body & (Y < 62), 1.5)
    scene.blend((spots * 0.7).astype(np.float32), (0.16, 0.26, 0.07))
    band = soften(limb([(64, 34, 1.6), (46, 44, 2.0), (26, 60, 1.6)]) & body, 0.5)
    scene.blend((band * 0.75).astype(np.float32), (0.22, 0.16, 0.07))
    scene.grain(body, 0.10, 3, 3)


# fmt: on
# ---------------------------------------------------------------- all of them

SCENES: dict[str, Callable[[np.random.Generator], Scene]] = {
    "airplane/airliner": airliner,
    "airplane/propeller": propeller,
    "automobile/saloon": saloon,
    "bird/buzzard": buzzard,
    "bird/robin": robin,
    "deer/stag": stag,
    "frog/frog": frog,
    "horse/horse": horse,
    "ship/cruiser": cruiser,
    "ship/freighter": freighter,
    "ship/sailboat": sailboat,
    "truck/lorry": lorry,
    "truck/tipper": tipper,
}


def render(name: str, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the scene ``name`` (a key of ``SCENES``): uint8 [SIZE, SIZE, 3] RGB and its mask [SIZE, SIZE], 0 or 255.

    A scene's random numbers depend on ``seed`` and on its name only, not on which others are rendered.
    """
    scene = SCENES[name](np.random.Generator(np.random.Philox([seed, *name.encode()])))
    return scene.finish()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every scene and its mask."""
    parser = argparse.ArgumentParser(description="Render the drawn sample scenes and their masks.")
    here = Path(__file__).parent
    parser.add_argument("-o", "--output", type=Path, default=here, help="folder for images/ and truth/ (default: here)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of clouds, waves, grass and noise")
    options = parser.parse_args(arguments)
    for name in SCENES:
        for folder, pixels in zip(("images", "truth"), render(name, options.seed), strict=True):
            path = options.output / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)


if __name__ == "__main__":
    main()
