"""Data with masks, depth and boxes, written in every form that kdcli reads; what is written is known."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

SIZE = (24, 16)
"""Width and height."""
BOXES = ([2, 3, 12, 11], [5, 1, 23, 15])
"""Left, top, right, bottom of the boxes that every image has."""
CLASSES = ("cell", "dot")


def picture(number, size=SIZE):
    """An image of its own: (W, H)."""
    pixels = np.full((size[1], size[0], 3), (9 * number) % 256, np.uint8)
    pixels[: size[1] // 2, :, 1] = 200
    return Image.fromarray(pixels)


def mask(number, size=SIZE):
    """Class 0 above, 1 below, 2 in the first column, 255 in the last one."""
    values = np.zeros((size[1], size[0]), np.uint8)
    values[size[1] // 2 :] = 1
    values[:, 0], values[:, -1] = 2, 255
    values[0, 1] = number % 3
    return values


def metres(number, size=SIZE):
    """From 1 to 4 metres, nothing measured in the last column."""
    values = np.linspace(1, 4, size[0] * size[1], dtype=np.float32).reshape(size[1], size[0]) + 0.01 * number
    values[:, -1] = 0
    return values


def save(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, str):
        path.write_text(what)
    elif path.suffix == ".npy":
        np.save(path, what)
    elif path.suffix == ".npz":
        np.savez(path, what)
    elif isinstance(what, np.ndarray):
        Image.fromarray(what).save(path)
    else:
        what.save(path)


def names(count=9):
    return [f"s{number:02}" for number in range(count)]


def images_and(root, folder, write, *, count=9, splits=("",), suffix=".png"):
    """``images/`` beside a folder of targets, below each of ``splits``."""
    for place, split in enumerate(splits):
        for number in range(count):
            number += 100 * place
            save(root / split / "images" / f"s{number:03}.jpg", picture(number))
            save(root / split / folder / f"s{number:03}{suffix}", write(number))
    return root


def masks(root, **options):
    return images_and(root, "masks", mask, **options)


def depth(root, *, suffix=".png", scale=1000, **options):
    def write(number):
        return (metres(number) * scale).round().astype(np.uint16) if suffix == ".png" else metres(number) * scale

    return images_and(root, "depth", write, suffix=suffix, **options)


def coco(root, *, splits=("train", "val"), count=6, extra=()):
    for split in splits:
        images, annotations = [], []
        for number in range(count):
            save(root / f"{split}2017" / f"{split}{number}.jpg", picture(number + (50 if split == "val" else 0)))
            entry = {"id": 10 + number, "file_name": f"{split}{number}.jpg", "width": SIZE[0], "height": SIZE[1]}
            images.append(entry)
            for place, box in enumerate(BOXES if number else ()):  # the first image shows nothing
                left, top, right, bottom = box
                annotations.append({
                    "id": 100 * number + place, "image_id": 10 + number, "category_id": (7, 3)[place],
                    "bbox": [left, top, right - left, bottom - top], "iscrowd": place, "area": 1,
                })  # fmt: skip
        categories = [{"id": 7, "name": "dot"}, {"id": 3, "name": "cell"}]
        content = {"images": images, "annotations": [*annotations, *extra], "categories": categories}
        save(root / "annotations" / f"instances_{split}2017.json", json.dumps(content))
    return root


def yolo(root, *, yaml="path: .\ntrain: images/train\nval: images/val\nnames: [cell, dot]\n", count=6):
    for split in ("train", "val"):
        for number in range(count):
            save(root / "images" / split / f"{split}{number}.jpg", picture(number + (50 if split == "val" else 0)))
            rows = [
                f"{label} {(x0 + x1) / 2 / SIZE[0]} {(y0 + y1) / 2 / SIZE[1]} {(x1 - x0) / SIZE[0]} {(y1 - y0) / SIZE[1]}"
                for label, (x0, y0, x1, y1) in enumerate(BOXES)
            ]
            if number:  # the first image shows nothing
                save(root / "labels" / split / f"{split}{number}.txt", "\n".join(rows))
    if yaml:
        save(root / "data.yaml", yaml)
    return root


def xml(objects, *, size=SIZE, name="x.jpg"):
    rows = "".join(
        f"<object><name>{label}</name><difficult>{hard}</difficult><bndbox><xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}"
        f"</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for label, hard, box in objects
    )
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{sides}{rows}</annotation>"


def voc(root, *, count=9, lists=True):
    objects = [("cell", 0, BOXES[0]), ("dot", 1, BOXES[1])]
    for number, name in enumerate(names(count)):
        save(root / "JPEGImages" / f"{name}.jpg", picture(number))
        save(root / "Annotations" / f"{name}.xml", xml(objects if number else []))
    if lists:
        of = {"train": names(count)[:4], "val": names(count)[4:6], "test": names(count)[6:]}
        for split, chosen in of.items():
            save(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(chosen) + "\n")
        save(root / "ImageSets" / "Main" / "cell_train.txt", "s00 -1\ns01  1\n")
        save(root / "ImageSets" / "Main" / "trainval.txt", "\n".join(names(count)[:6]))
    return root


def voc_masks(root):
    for number, name in enumerate(names()):
        save(root / "JPEGImages" / f"{name}.jpg", picture(number))
        image = Image.fromarray(mask(number), "P")
        image.putpalette([*np.random.default_rng(0).integers(0, 256, 768).tolist()])
        save(root / "SegmentationClass" / f"{name}.png", image)
    save(root / "ImageSets" / "Segmentation" / "train.txt", "\n".join(names()[:6]))
    save(root / "ImageSets" / "Segmentation" / "val.txt", "\n".join(names()[6:]))
    return root


def cityscapes(root, *, kind="labelIds"):
    values = {"labelIds": {0: 7, 1: 26, 2: 0, 255: 3}, "labelTrainIds": {0: 0, 1: 13, 2: 255, 255: 255}}[kind]
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "munster"), ("test", "bonn")):
        for number in range(3):
            stem = f"{city}_00000{number}_000019"
            save(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", picture(hash(city) % 20 + number))
            own = np.vectorize(values.get)(mask(0)).astype(np.uint8)
            own = own if split != "test" else own * 0 + values[255]
            save(root / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png", own)
    return root


def nyu(root):
    for scene in range(6):
        for number in range(3):
            place = root / ("official_splits/test" if scene == 5 else "sync") / f"kitchen_{scene:04}"
            save(place / f"rgb_0000{number}.jpg", picture(10 * scene + number))
            save(place / f"sync_depth_0000{number}.png", (metres(number) * 1000).astype(np.uint16))
    return root


def nyu_csv(root):
    rows = []
    for scene in range(5):
        for number in range(3):
            place = f"data/nyu2_train/kitchen_{scene}"
            save(root / place / f"{number}.jpg", picture(10 * scene + number))
            save(root / place / f"{number}.png", (metres(number) * 25.5).astype(np.uint8))
            rows.append(f"{place}/{number}.jpg,{place}/{number}.png")
    save(root / "data" / "nyu2_train.csv", "\n".join(rows))
    test = []
    for number in range(2):
        save(root / f"data/nyu2_test/{number}_colors.png", picture(200 + number))
        save(root / f"data/nyu2_test/{number}_depth.png", (metres(number) * 1000).astype(np.uint16))
        test.append(f"data/nyu2_test/{number}_colors.png,data/nyu2_test/{number}_depth.png")
    save(root / "data" / "nyu2_test.csv", "\n".join(test))
    return root


def csv_of(root, target, *, header=True, split=True):
    rows = [f"image,{target},split" if split else f"image,{target}"] if header else []
    for number, name in enumerate(names()):
        save(root / "a" / f"{name}.png", picture(number))
        save(
            root / "b" / f"{name}_x.png", mask(number) if target == "mask" else (metres(number) * 256).astype(np.uint16)
        )
        row = f"a/{name}.png,b/{name}_x.png"
        rows.append(f"{row},{'val' if number > 6 else 'train'}" if split else row)
    save(root / "list.csv", "\n".join(rows))
    return root / "list.csv"


def jsonl_boxes(root, *, key="objects"):
    rows = []
    for number, name in enumerate(names()):
        save(root / f"{name}.png", picture(number))
        own = BOXES if number else ()
        if key == "objects":
            boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in own]
            row = {"objects": {"bbox": boxes, "category": ["cell", "dot"][: len(own)]}}
        else:
            row = {"boxes": [list(box) for box in own], "labels": [0, 1][: len(own)]}
        rows.append(json.dumps({"image": f"{name}.png", **row}))
    save(root / "list.jsonl", "\n".join(rows))
    return root / "list.jsonl"


def csv_boxes(root):
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for number, name in enumerate(names()):
        save(root / f"{name}.png", picture(number))
        rows += [
            f"{name}.png,{SIZE[0]},{SIZE[1]},{CLASSES[label]},{','.join(map(str, box))}"
            for label, box in enumerate(BOXES)
        ]
    save(root / "list.csv", "\n".join(rows))
    return root / "list.csv"


def table(path, target):
    """A parquet file as ``datasets`` writes it."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value
    from datasets import Image as ImageFeature

    count = 12
    rows = {"image": [picture(number) for number in range(count)]}
    if target == "pixels":
        rows["mask"] = [Image.fromarray(mask(number)) for number in range(count)]
        features = Features(image=ImageFeature(), mask=ImageFeature())
    elif target == "depth":
        rows["depth_map"] = [Image.fromarray(metres(number)) for number in range(count)]
        features = Features(image=ImageFeature(), depth_map=ImageFeature())
    else:
        boxes = [[float(x0), float(y0), float(x1 - x0), float(y1 - y0)] for x0, y0, x1, y1 in BOXES]
        rows["objects"] = [{"bbox": boxes if n else [], "category": [0, 1] if n else []} for n in range(count)]
        objects = {
            "bbox": Sequence(Sequence(Value("float32"), length=4)),
            "category": Sequence(ClassLabel(names=CLASSES)),
        }
        features = Features(image=ImageFeature(), objects=objects)
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == "depth":  # PNG has no floats
        import io

        def encode(image):
            buffer = io.BytesIO()
            image.save(buffer, "TIFF")
            return {"bytes": buffer.getvalue(), "path": None}

        rows["depth_map"] = [encode(image) for image in rows["depth_map"]]
    Dataset.from_dict(rows, features).to_parquet(path)
    return path
