"""Mosaics of digits with several right labels each: pictures of 2 x 3 slots as queries, 'digit d in slot s' as labels.

One to six slots are filled; digits are long-tailed (frequency 0.7^d). The 60 labels share parameters as label texts do: the
label tower embeds slot and digit and mixes them. 1000 mosaics to train on and 1500 unseen ones, of other digits, all with
noise of deviation 0.35; data and noise depend on the seed alone, so that every loss sees the same pictures.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from efface.lab.digit_learning import TRAIN_SHARE, digit_pixels
from efface.learn.label_training import LabelledConfig, fit_labels
from efface.learn.retrieval_scores import retrieval_scores, search
from efface.run.digests import digest_value
from efface.run.files import make_folder, write_with
from efface.train.engine import isolated_rng
from efface.train.reference import cache_folder

ROWS, COLUMNS, DIGITS = 2, 3, 10
SLOTS = ROWS * COLUMNS
TRAIN, UNSEEN = 1000, 1500
TAIL, NOISE = 0.7, 0.35
RARE = 5
"""Digits from here on are rare: their shares are 0.7^5 and less of the commonest's."""
MANY = 4
"""Labels of a picture of many."""


@dataclass(frozen=True)
class Mosaics:
    """Pictures [N, 1, 16, 24] with noise, and each one's labels (slot * 10 + digit), sorted."""

    pictures: Tensor
    relevant: list[list[int]]


@cache
def mosaics(seed: int) -> tuple[Mosaics, Mosaics]:
    """To train on, and unseen ones."""
    pixels, labels = digit_pixels()
    pools = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x05A1C]))
    shares = TAIL ** np.arange(DIGITS)

    def part(pool: np.ndarray, count: int) -> Mosaics:
        pictures = np.zeros((count, ROWS * 8, COLUMNS * 8), dtype=np.float32)
        relevant = []
        for row in range(count):
            slots = np.sort(rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)])
            digits = rng.choice(DIGITS, size=len(slots), p=shares / shares.sum())
            for slot, digit in zip(slots, digits, strict=True):
                y, x = 8 * (slot // COLUMNS), 8 * (slot % COLUMNS)
                pictures[row, y : y + 8, x : x + 8] = pixels[rng.choice(pool[labels[pool] == digit])] / 255
            relevant.append([int(slot * DIGITS + digit) for slot, digit in zip(slots, digits, strict=True)])
        noisy = pictures + NOISE * rng.standard_normal(pictures.shape)
        return Mosaics(torch.tensor(noisy, dtype=torch.float32)[:, None], relevant)

    return part(pools[0], TRAIN), part(pools[1], UNSEEN)


class Towers(nn.Module):
    """A convolutional tower of pictures and a tower of labels, both to 64 dimensions."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.picture = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(64 * 4 * 6, 256), nn.ReLU(), nn.Linear(256, width)
        )
        self.slot, self.digit = nn.Embedding(SLOTS, width), nn.Embedding(DIGITS, width)
        self.mix = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def of_labels(self, labels: Tensor) -> Tensor:
        """[L, D] of places [L]."""
        found: Tensor = self.mix(torch.cat([self.slot(labels // DIGITS), self.digit(labels % DIGITS)], dim=1))
        return found


class PictureTower:
    """Pictures as queries."""

    def __init__(self, model: Towers) -> None:
        self.model = model

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[b, D] of pictures."""
        found: Tensor = self.model.picture(inputs["pixels"])
        return found


class LabelTower:
    """Labels by their places."""

    def __init__(self, model: Towers) -> None:
        self.model = model

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[L, D] of labels."""
        return self.model.of_labels(inputs["label"].to(self.model.slot.weight.device))


def trained(seed: int, **settings: Any) -> Towers:
    """Towers trained on the mosaics of a seed, from the cache where they are there. Settings: see `LabelledConfig`."""
    config = LabelledConfig.parse({"seed": seed, **settings}, owner="mosaics")
    known = mosaics(seed)[0]
    with isolated_rng(seed):
        model = Towers()
    key = digest_value({"lab": "mosaics 1", "config": config.model_dump(mode="json"), "rows": TRAIN})
    place = cache_folder() / "lab" / key.removeprefix("sha256:")[:24]
    done = place / "towers.safetensors"
    if not done.exists():
        work = make_folder(place / "work")
        fit_labels(
            model, (PictureTower(model), LabelTower(model)), lambda rows: {"pixels": known.pictures[list(rows)]},
            {"label": torch.arange(SLOTS * DIGITS)}, known.relevant, config, work=work, label=f"mosaics {config.loss}",
        )  # fmt: skip
        model = model.cpu()
        write_with(done, lambda partial: save_file(model.state_dict(), partial))
        shutil.rmtree(work, ignore_errors=True)
    model.load_state_dict(load_file(done))
    return model.eval()


def scores(model: Towers, seed: int) -> dict[str, float]:
    """On unseen mosaics: P@1, P@4 where there are four labels or more, R-precision, recall@10, and that of rare digits."""
    unseen = mosaics(seed)[1]
    with torch.no_grad():
        q, labels = model.picture(unseen.pictures), model.of_labels(torch.arange(SLOTS * DIGITS))
    found = search(nn.functional.normalize(q, dim=1), nn.functional.normalize(labels, dim=1), 10)[1]
    every = retrieval_scores(found, unseen.relevant, at=(1, 10))
    many = [row for row, line in enumerate(unseen.relevant) if len(line) >= MANY]
    rare = [[label for label in line if label % DIGITS >= RARE] for line in unseen.relevant]
    return {
        "p@1": every["p@1"],
        "p@4": retrieval_scores(found[many], [unseen.relevant[row] for row in many], at=(4,))["p@4"],
        "r-precision": every["r-precision"], "recall@10": every["recall@10"],
        "rare recall@10": retrieval_scores(found, rare, at=(10,))["recall@10"],
    }  # fmt: skip
