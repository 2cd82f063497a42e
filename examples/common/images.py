# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""A user's own network and folders of images."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Images(Dataset[tuple[Tensor, int]]):
    """Images with labels, from one of two layouts.

    Either one sub-folder for each class, numbered in the order of the names (as torchvision does), or all images
    in one folder with a file ``labels.csv`` that has the columns ``file`` and ``label``.

    :param folder: where the images are.
    :param size: their side as the network takes them. Images of this size are taken as they are, others are resized so
        that the shorter side is 8/7 of it, and cropped in the centre.
    :raises SystemExit: where the folder or its images are missing.
    """

    def __init__(self, folder: Path, size: int = 224) -> None:
        if not folder.is_dir():
            raise SystemExit(f"There is no folder {str(folder)!r}. Give an existing folder of images.")
        labels = folder / "labels.csv"
        self.items = _from_table(labels) if labels.is_file() else _from_folders(folder)
        self.size = size
        if not self.items:
            raise SystemExit(
                f"Found no images in {str(folder)!r}: expected a sub-folder for each class, or a file labels.csv with "
                "the columns file and label beside the images."
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        with Image.open(path) as image:
            pixels = _fit(image.convert("RGB"), self.size)
        values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).reshape(self.size, self.size, 3)
        channels = values.permute(2, 0, 1).float() / 255
        return (channels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], label


def load_model(name: str, weights: Path | None, log: Callable[[str], None] = print) -> nn.Module:
    """Build a network of torchvision.

    :param name: ``torchvision:`` and the name of a model.
    :param weights: a file of its state_dict, .safetensors or any that torch.load takes; None for random weights.
    :param log: called with what the user should know.
    :raises SystemExit: where the model or the file is missing, or does not fit.
    """
    import torchvision

    library, _, short = name.partition(":")
    known = torchvision.models.list_models(module=torchvision.models)
    if library != "torchvision" or short not in known:
        raise SystemExit(f"Unknown model {name!r}: expected torchvision: and one of {', '.join(known)}.")
    model = torchvision.models.get_model(short, weights=None)
    if weights is None:
        log(f"{name} has random weights: latency can be measured, accuracy cannot. Give --weights for real ones.")
    else:
        missing, unexpected = model.load_state_dict(_read_weights(weights), strict=False)
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise SystemExit(
                f"{str(weights)!r} does not fit {name}: missing {missing[:5]}, unexpected {unexpected[:5]}."
            )
    return model.eval()


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SystemExit(f"There is no file {str(path)!r}. Give a file of weights, .safetensors or .pth.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return weights.get("state_dict", weights)


def _from_table(labels: Path) -> list[tuple[Path, int]]:
    with labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"file", "label"} <= set(rows[0]):
        raise SystemExit(f"{str(labels)!r} has the columns {', '.join(rows[0])}: expected file and label.")
    items = [(labels.parent / row["file"], int(row["label"])) for row in rows]
    lost = [path for path, _ in items if not path.is_file()]
    if lost:
        raise SystemExit(f"{str(labels)!r} names {len(lost)} files that do not exist, such as {str(lost[0])!r}.")
    return items


def _from_folders(folder: Path) -> list[tuple[Path, int]]:
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    return [
        (path, label)
        for label, each in enumerate(classes)
        for path in sorted(each.rglob("*"))
        if path.suffix.lower() in ENDINGS
    ]


def _fit(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    scale = size * 8 / 7 / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
