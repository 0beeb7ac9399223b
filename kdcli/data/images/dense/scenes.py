"""``demo:scenes``: objects of known class, size and depth in a room, rendered by index.

A room has a floor and a back wall, both made of photographs. Objects are upright pictures that stand on the floor,
facing the camera: nearer ones hide farther ones. A pinhole camera (focal length of as many pixels as the image is wide,
``CAMERA_HEIGHT`` above the floor) makes an object of ``s`` metres at ``z`` metres ``f s / z`` pixels high. All colours
fade with distance into the haze, by ``1 / (1 + z / HAZE)``; so depth can be told from size, from where something
stands, and from its contrast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from kdcli.base.facts import UNLABELLED
from kdcli.base.tasks import Target
from kdcli.data.images.dense.materials import (
    SIDE,
    Materials,
    Photo,
    Split,
    cut_out,
    digest_of,
    read_objects,
    read_photos,
)
from kdcli.data.images.sources import ImageSource
from kdcli.data.source import Sample

SIZE = 96
"""Pixels of a scene, across and down."""
CAMERA_HEIGHT = 1.2
"""Metres above the floor."""
HAZE = 10.0
"""Metres at which half of the contrast is left."""
NEAREST, WALL = 2.2, (5.0, 9.0)
"""Metres: of the nearest objects, and of the back wall."""
OBJECTS = (2, 6)
"""Fewest and most objects of a scene."""
LEAST_VISIBLE = 0.25
"""An object of which less than this share is to be seen, or less than 2 pixels across or down, has no box."""
VERSION = 1
"""Of the rendering: goes up with every change of what a scene looks like."""
_HEIGHT = (0.9, 1.3)
"""Metres: what an object's whole picture of 28 pixels is high."""
_OF_SCENE, _OF_OBJECT = 24, 10
"""Random numbers for a scene, and for each of its objects."""
_SEED = {"train": 0, "validation": 1, "test": 2}
_FIRST = 20_260_117


@dataclass(frozen=True)
class Scene:
    """One image with everything that is known of it.

    Attributes:
        image: uint8 (H, W, 3).
        mask: int64 (H, W), 0 the background, else 1 + the object's class.
        depth: float32 (H, W), metres along the camera's axis, known everywhere.
        boxes: float32 (n, 4), left, top, right, bottom in pixels, of the visible part of every object that has one;
            the farthest first.
        labels: int64 (n,), the classes of those, from 0.
        depths: float32 (n,), the depths of those.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.int64]
    depth: NDArray[np.float32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    depths: NDArray[np.float32]


@dataclass(frozen=True)
class _Object:
    """An object in its scene: what it looks like (picture, class), and where it stands (metres; pixels across)."""

    number: int
    label: int
    depth: float
    height: float
    across: float
    is_flipped: bool
    colour: NDArray[np.float32]


@dataclass(frozen=True)
class _Room:
    """What a scene is before it is rendered: the camera's horizon (row), the wall (metres), and the objects."""

    horizon: float
    wall: float
    objects: tuple[_Object, ...]
    numbers: NDArray[np.float64]


def render(materials: Materials, split: Split, index: int, *, size: int = SIZE) -> Scene:
    """Return a scene, a pure function of its arguments.

    Random numbers are the raw ones of PCG64, whose streams numpy keeps; the rest is exact arithmetic and Pillow's
    resizing of small pictures.

    Args:
        materials: what it is made of.
        split: whose objects and photographs.
        index: from 0 to whatever number.
        size: pixels across and down.
    """
    room = _furnish(materials, split, index, size)
    haze = _haze(room)
    image, depth = _empty_room(room, haze, read_photos(materials, split), size)
    pictures, _ = read_objects(materials, split)
    owner = np.zeros((size, size), np.int64)
    whole = np.zeros(len(room.objects) + 1, np.int64)
    for place, thing in enumerate(room.objects, start=1):
        whole[place] = _paint(thing, cut_out(pictures[thing.number], materials), room, haze, place, image, owner)
    depths = np.array([0.0, *(thing.depth for thing in room.objects)], np.float32)
    labels = np.array([-1, *(thing.label for thing in room.objects)], np.int64)
    is_object = owner > 0
    depth = np.where(is_object, depths[owner], depth)
    boxes, kept = _boxes(owner, whole)
    pixels = np.rint(image).astype(np.uint8)
    return Scene(pixels, labels[owner] + 1, depth, boxes, labels[kept], depths[kept])


def nearest_label(materials: Materials, split: Split, index: int) -> int:
    """Return the class of a scene's nearest object, which nothing hides."""
    return _furnish(materials, split, index, SIZE).objects[-1].label


def _uniform(split: Split, index: int) -> NDArray[np.float64]:
    """Return as many numbers in [0, 1) as a scene takes; those of different scenes are independent."""
    seed = np.random.SeedSequence((_FIRST, VERSION, _SEED[split], index))
    raw = np.random.PCG64(seed).random_raw(_OF_SCENE + OBJECTS[1] * _OF_OBJECT)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _between(low: float, high: float, number: float) -> float:
    return low + (high - low) * float(number)


def _furnish(materials: Materials, split: Split, index: int, size: int) -> _Room:
    """Draw where everything is, the farthest object first."""
    _, classes = read_objects(materials, split)
    numbers = _uniform(split, index)
    wall = _between(*WALL, numbers[1])
    count = OBJECTS[0] + int(numbers[2] * (OBJECTS[1] - OBJECTS[0] + 1))
    objects = []
    for own in numbers[_OF_SCENE:].reshape(-1, _OF_OBJECT)[:count]:
        number = int(own[0] * len(classes))
        objects.append(
            _Object(
                number=number,
                label=int(classes[number]),
                # as many of each size in pixels
                depth=1 / _between(1 / (wall - 0.2), 1 / NEAREST, own[1]),
                height=_between(*_HEIGHT, own[2]),
                across=own[3] * size,
                is_flipped=materials.may_flip and bool(own[4] < 0.5),
                colour=(255 * (0.35 + 0.65 * own[5:8])).astype(np.float32),
            )
        )
    objects.sort(key=lambda thing: -thing.depth)
    return _Room(_between(0.35, 0.45, numbers[0]) * size, wall, tuple(objects), numbers)


def _haze(room: _Room) -> NDArray[np.float32]:
    """Return the colour that everything fades into, (3,)."""
    return (150 + 70 * room.numbers[3] + 20 * room.numbers[4:7]).astype(np.float32)


def _empty_room(
    room: _Room, haze: NDArray[np.float32], photos: Sequence[Photo], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the image of floor and wall, (H, W, 3) in 0..255, and its depth (H, W)."""
    numbers = room.numbers
    below = np.arange(size) + 0.5 - room.horizon  # rows under the horizon
    with np.errstate(divide="ignore"):
        row_depth = np.where(below > 0, size * CAMERA_HEIGHT / np.where(below > 0, below, 1), np.inf)
    row_depth = np.minimum(row_depth, room.wall)
    seam = int(np.count_nonzero(row_depth >= room.wall))
    kept = (1 / (1 + row_depth / HAZE)).astype(np.float32)[:, None, None]
    light = 0.45 + 0.45 * numbers[[14, 18], None] + 0.1 * numbers[[[15, 16, 17], [19, 20, 21]]]
    colour = kept * np.repeat(light.astype(np.float32), (seam, size - seam), axis=0)[:, None]
    image = np.empty((size, size, 3), np.float32)
    wall = _wall(photos[int(numbers[7] * len(photos))].image, numbers[8:11], seam, size)
    floor = _floor(photos[int(numbers[11] * len(photos))].pixels, numbers[12:14], row_depth[seam:], size)
    np.multiply(wall, colour[:seam], out=image[:seam])
    np.multiply(floor, colour[seam:], out=image[seam:])
    image += haze * (1 - kept)
    return image, np.repeat(row_depth.astype(np.float32)[:, None], size, axis=1)


def _wall(photo: Image.Image, numbers: NDArray[np.float64], height: int, width: int) -> NDArray[np.uint8]:
    """Return a crop of a photograph, from two fifths of what fits to all of it, in these proportions."""
    columns, rows = photo.size
    scale = min(rows / height, columns / width) * _between(0.4, 1.0, numbers[0])
    tall, wide = scale * height, scale * width
    top, left = (rows - tall) * numbers[1], (columns - wide) * numbers[2]
    box = (left, top, left + wide, top + tall)
    return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR, box))


def _floor(
    photo: NDArray[np.uint8], numbers: NDArray[np.float64], depth: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    """Return a photograph that lies on the floor, 64 pixels a metre, mirrored at its edges; for every row's depth."""
    across = (np.arange(size) + 0.5) / size - 0.5
    offsets = numbers * 1000
    rows = _mirrored(depth * 64 + offsets[0], photo.shape[0])
    columns = _mirrored(depth[:, None] * (across * 64) + (offsets[1] + 1000), photo.shape[1])
    return photo[rows[:, None], columns]


def _mirrored(places: NDArray[np.float64], length: int) -> NDArray[np.int64]:
    """Return the pixel at each place of a line of ``length`` pixels that runs there and back again, without end."""
    folded = places.astype(np.int64) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def _paint(
    thing: _Object,
    cut: NDArray[np.uint8],
    room: _Room,
    haze: NDArray[np.float32],
    place: int,
    image: NDArray[np.float32],
    owner: NDArray[np.int64],
) -> int:
    """Paint an object over what is behind it, and write ``place`` where it now is; return its pixels, hidden or not."""
    size = len(image)
    scale = size * thing.height / (SIDE * thing.depth)
    wide, tall = (max(2, round(length * scale)) for length in (cut.shape[1], cut.shape[0]))
    bands = np.asarray(Image.fromarray(cut).resize((wide, tall), Image.Resampling.BILINEAR))
    brightness, opacity = (bands[:, :: -1 if thing.is_flipped else 1, band] for band in (0, 1))
    top = round(room.horizon + size * CAMERA_HEIGHT / thing.depth) - tall
    left = round(thing.across - wide / 2)
    rows, columns = slice(max(top, 0), min(top + tall, size)), slice(max(left, 0), min(left + wide, size))
    inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    kept = 1 / (1 + thing.depth / HAZE)
    shade = (brightness[inside] * np.float32(0.75 / 255) + np.float32(0.25)) * np.float32(kept)
    colour = shade[..., None] * thing.colour + haze * np.float32(1 - kept)
    share = (opacity[inside] * np.float32(1 / 255))[..., None]
    under = image[rows, columns]
    under += share * (colour - under)
    owner[rows, columns][opacity[inside] >= 128] = place
    return int(np.count_nonzero(opacity >= 128))


def _boxes(owner: NDArray[np.int64], whole: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return boxes (n, 4) of what is to be seen of the objects, and which objects those are, (n,)."""
    seen = np.bincount(owner.ravel(), minlength=len(whole))
    boxes, kept = [], []
    for place in range(1, len(whole)):
        if seen[place] < max(LEAST_VISIBLE * whole[place], 1):
            continue
        own = owner == place
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        if box[2] - box[0] >= 2 and box[3] - box[1] >= 2:
            boxes.append(box)
            kept.append(place)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(kept, np.int64)


class SceneSource(ImageSource):
    """The scenes of one split, rendered when they are asked for.

    Args:
        materials: what they are made of.
        split: whose objects and photographs.
        count: how many scenes.
        target: what is loaded with each: ``pixels``, ``depth``, ``boxes``, or ``label`` for the class of the nearest
            object; for any other nothing.
    """

    in_memory = True

    def __init__(self, materials: Materials, split: Split, count: int, *, target: Target) -> None:
        self.materials, self.split, self._target = materials, split, target
        self.fill = 0.0 if target == "depth" else UNLABELLED
        if target == "label":
            self.labels = tuple(nearest_label(materials, split, index) for index in range(count))
        else:
            self.labels = (0,) * count

    def load(self, index: int) -> Sample:
        """Render one scene."""
        scene = render(self.materials, self.split, index)
        return Sample(Image.fromarray(scene.image), self._target_of(scene, index))

    def _target_of(self, scene: Scene, index: int) -> Any:
        match self._target:
            case "pixels":
                return tv_tensors.Mask(torch.from_numpy(scene.mask))
            case "depth":
                return tv_tensors.Mask(torch.from_numpy(scene.depth))
            case "boxes":
                boxes = tv_tensors.BoundingBoxes(
                    torch.from_numpy(scene.boxes),
                    format=tv_tensors.BoundingBoxFormat.XYXY,
                    canvas_size=(SIZE, SIZE),
                )
                return {"boxes": boxes, "labels": torch.from_numpy(scene.labels)}
        return self.labels[index]

    def recipe(self, index: int) -> bytes:
        """Return what tells a scene and its target from all others, without rendering it."""
        made_of = (VERSION, digest_of(self.materials, self.split), SIZE, self.split, index, self._target)
        return hashlib.sha256(repr(made_of).encode()).digest()

    def describe(self, index: int) -> str:
        """Return ``split[index]``."""
        return f"{self.split}[{index}]"
