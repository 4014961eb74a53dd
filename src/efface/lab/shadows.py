"""Shadows: many small digit classifiers trained together, each on its own share of the data.

Membership attacks ask how a model treats an example with and without it in training; that takes tens of models. Here
they are one stack of parameters under `torch.func.vmap` and one optimiser, full batch, weighted by who may see what:
33 of them take seconds. The data are scikit-learn's handwritten digits, 400 of them with 15 % wrong labels, because a
clean digit is learnt without being remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from efface.errors import ConfigError
from efface.run.digests import digest_value
from efface.run.files import write_with
from efface.train.engine import isolated_rng
from efface.train.reference import cache_folder

CLASSES = 10
PIXELS = 64

Stack = dict[str, Tensor]
"""Parameters of M models by name, each [M, ...]."""


@dataclass(frozen=True)
class Shadows:
    """What the shadow models say.

    Attributes:
        logits: [N, n, C] of every model on every example, float64.
        keep: [N, n] bool, true where the model was trained on the example.
        labels: [n], the noisy ones that the models were trained on.
        noisy: [n] bool, true where the label is wrong.
        seconds: wall-clock seconds that `shadows` took.
    """

    logits: npt.NDArray[np.float64]
    keep: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    noisy: npt.NDArray[np.bool_]
    seconds: float


def digits() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1797 handwritten digits: images [n, 64] float32 from 0 to 1, labels [n] int64."""
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    return torch.tensor(bundle.data, dtype=torch.float32) / 16, torch.tensor(bundle.target, dtype=torch.int64)


def mlp(width: int = 64) -> torch.nn.Sequential:
    """One hidden layer: 64 pixels, `width` ReLU units, 10 logits. Starts from torch's global generator."""
    return torch.nn.Sequential(torch.nn.Linear(PIXELS, width), torch.nn.ReLU(), torch.nn.Linear(width, CLASSES))


def new_stack(count: int, seed: int, width: int = 64) -> Stack:
    """`count` freshly initialised classifiers; the global generator is left as it was."""
    with isolated_rng(seed):
        params, _ = stack_module_state([mlp(width) for _ in range(count)])
    return {name: tensor.detach() for name, tensor in params.items()}


def stack_logits(stack: Stack, images: Tensor) -> Tensor:
    """[M, n, C] logits of every model on the same images [n, 64]."""
    with torch.device("meta"):  # only the form: no numbers, nothing drawn from the global generator
        base = mlp(stack["0.weight"].shape[1])

    def one(params: Stack) -> Tensor:
        found: Tensor = functional_call(base, params, (images,))
        return found

    result: Tensor = vmap(one)(stack)
    return result


def fit_stack(
    stack: Stack, images: Tensor, labels: Tensor, weights: Tensor, *, steps: int, learning_rate: float,
    look: Callable[[int, Stack], None] | None = None,
) -> Stack:  # fmt: skip
    """Train all models of a stack together: full-batch Adam on each model's own weighted mean cross-entropy.

    Models do not touch each other: the sum of their losses splits into their gradients, and Adam works by element.

    Args:
        stack: the start; unchanged.
        images: [n, 64].
        labels: [n].
        weights: [M, n], 0 where a model may not see the example.
        look: called with (0, start), then after every step.

    Raises:
        ConfigError: a model without any example.
    """
    total = weights.sum(1, keepdim=True)  # [M, 1]
    if bool((total <= 0).any()):
        raise ConfigError(f"model {int((total <= 0).flatten().int().argmax())} sees no example", "a positive weight")
    shares = weights / total
    live = {name: tensor.clone().requires_grad_(True) for name, tensor in stack.items()}
    adam = torch.optim.Adam(live.values(), lr=learning_rate)
    if look is not None:
        look(0, {name: tensor.detach() for name, tensor in live.items()})
    for step in range(1, steps + 1):
        logits = stack_logits(live, images)  # [M, n, C]
        nll = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.repeat(len(shares)), reduction="none"
        ).view_as(shares)  # fmt: skip
        adam.zero_grad()
        (nll * shares).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        if look is not None:
            look(step, {name: tensor.detach() for name, tensor in live.items()})
    return {name: tensor.detach() for name, tensor in live.items()}


def random_halves(models: int, examples: int, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A keep matrix [models, examples]: every model sees a random half of the examples."""
    keep = np.zeros((models, examples), dtype=np.bool_)
    for row in keep:
        row[rng.permutation(examples)[: examples // 2]] = True
    return keep


def shadows(
    seed: int = 0, *, models: int = 33, examples: int = 400, noise: float = 0.15, steps: int = 300,
    learning_rate: float = 1e-2,
) -> Shadows:  # fmt: skip
    """Train the shadow models, or load their logits from the cache.

    Args:
        seed: of the examples, the wrong labels, the halves and the starting weights.
        models: N.
        examples: n, at most 1797.
        noise: share of examples with another class as their label.

    Raises:
        ConfigError: more examples than there are digits, or noise outside [0, 1).
    """
    start = time.perf_counter()
    images, truth = digits()
    if not 4 <= examples <= len(truth) or not 0 <= noise < 1 or models < 1:
        raise ConfigError(
            f"{models} models, {examples} examples with {noise:g} noise",
            f"1 model, 4 to {len(truth)} examples, noise below 1",
        )
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(truth))[:examples]
    labels, images = truth[chosen].numpy().copy(), images[chosen]
    noisy = np.zeros(examples, dtype=np.bool_)
    noisy[rng.permutation(examples)[: round(noise * examples)]] = True
    labels[noisy] = (labels[noisy] + rng.integers(1, CLASSES, int(noisy.sum()))) % CLASSES
    keep = random_halves(models, examples, rng)
    key = digest_value({
        "lab": "shadows", "seed": seed, "models": models, "examples": examples, "noise": noise, "steps": steps,
        "learning_rate": learning_rate, "torch": torch.__version__,
    })  # fmt: skip
    path = cache_folder() / "lab" / f"{key.removeprefix('sha256:')[:24]}.safetensors"
    if not path.exists():
        stack = fit_stack(
            new_stack(models, seed), images, torch.from_numpy(labels), torch.from_numpy(keep).float(), steps=steps,
            learning_rate=learning_rate,
        )  # fmt: skip
        found = stack_logits(stack, images).contiguous()
        write_with(path, lambda partial: save_file({"logits": found}, partial))
    logits = load_file(path)["logits"].double().numpy()
    return Shadows(logits, keep, labels, noisy, time.perf_counter() - start)
