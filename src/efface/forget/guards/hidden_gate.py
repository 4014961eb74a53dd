"""A gate that reads the model's own hidden states: their mean over the prompt, and a small classifier behind it.

    z_i = (1 / L_i) sum_j m_ij h_ij,    p(forget | z) = softmax(MLP(z))_forget

GUARD, arXiv 2505.13312: h of the last layer but one, cross-entropy on forget prompts against retain prompts. No text is
stored, but the classifier's weights tell which prompts it stops.

Choices of ours, where the paper is not known to say: each dimension of z is brought to mean 0 and variance 1 over the prompts
of the fit (raw states differ in size by orders of magnitude); the classes weigh alike, however many prompts they have; scores
are rounded to six decimals, so that the batch a prompt stands in decides nothing at the threshold.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import ConfigError, ModelError
from efface.forget.guards.prompt_gate import Floats, PromptGate, check_both
from efface.subjects.hooks import Site, layers_of, recorded
from efface.subjects.networks import mlp
from efface.subjects.prompts import pad
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng, train, world_size
from efface.train.rows import RowSchedule

BATCH = 32
"""Prompts in one pass of the model."""

SPREAD = 1e-6
"""Added to the deviation of a dimension, which may be constant."""


def mean_state(states: Tensor, mask: Tensor) -> Tensor:
    """z [B, D]: the mean of states [B, T, D] where mask [B, T] is 1; padding on either side does not count."""
    weight = mask.to(states.dtype).unsqueeze(-1)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def chosen_layer(model: Any, layer: int | None) -> int:
    """The layer whose output is read, from 0; default: the last but one.

    Raises:
        ConfigError: no such layer.
    """
    n = len(layers_of(model))
    if layer is None:
        return max(0, n - 2)
    if not 0 <= layer < n:
        raise ConfigError(f"layer={layer}", f"0 to {n - 1}", "count from 0")
    return layer


class HiddenGate(PromptGate):
    """Mean-pooled hidden states and a two-layer classifier.

    Args:
        layer: residual stream after this layer, from 0.
        centre, scale: [D] of the prompts of the fit.
        network: [B, D] -> [B, 2]; class 1 is forget.
    """

    kind = "hidden"

    def __init__(self, layer: int, centre: Tensor, scale: Tensor, network: nn.Sequential) -> None:
        self.layer, self.centre, self.scale = layer, centre, scale
        self.network = network.eval()
        self._model: Any = None
        self._tokenizer: Any = None

    def bind(self, subject: Any) -> None:
        """Take the subject's present model, which must be bare, and its tokenizer."""
        self._model, self._tokenizer = subject.model, subject.tokenizer

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        """z [n, D] of some texts, float32 on the CPU.

        Raises:
            ModelError: no model yet.
        """
        if self._model is None:
            raise ModelError("a gate on hidden states without a model", "bind(subject) first")
        return prompt_states(self._model, self._tokenizer, texts, self.layer)

    @torch.no_grad()
    def scores(self, texts: Sequence[str]) -> Floats:
        if not len(texts):
            return np.zeros(0)
        z = (self.states(texts) - self.centre) / self.scale
        p = self.network(z).softmax(-1)[:, 1]
        return np.asarray(np.round(p.double().numpy(), 6), dtype=np.float64)

    @classmethod
    def fit(
        cls, subject: Any, forget: Sequence[str], keep: Sequence[str], config: TrainConfig, *, work: Path,
        layer: int | None = None, hidden: int = 256, dropout: float = 0.1,
    ) -> tuple[HiddenGate, list[dict[str, float]]]:  # fmt: skip
        """Fit on prompts to stop and prompts to let pass; the subject is only read.

        Args:
            subject: a bare causal LM.
            work: folder for checkpoints; removed when done.
            layer: see `chosen_layer`.

        Returns:
            the gate, bound to the subject, and the training log.

        Raises:
            RequestError: one of the two is empty.
        """
        check_both(forget, keep)
        layer = chosen_layer(subject.model, layer)
        with subject.evaluating() as model:
            z = prompt_states(model, subject.tokenizer, [*forget, *keep], layer)
        labels = torch.tensor([1] * len(forget) + [0] * len(keep))
        centre, scale = z.mean(0), z.std(0, correction=0) + SPREAD
        with isolated_rng(config.seed):
            network = mlp(z.shape[1], 2, (hidden,), dropout)
        log = _train(network, (z - centre) / scale, labels, config, work)
        gate = cls(layer, centre, scale, network)
        gate.bind(subject)
        return gate, log

    def _write(self, folder: Path) -> dict[str, Any]:
        tensors = {f"network.{name}": value.detach().contiguous() for name, value in self.network.state_dict().items()}
        save_file({"centre": self.centre, "scale": self.scale, **tensors}, folder / "gate.safetensors")
        return {"layer": self.layer}

    @classmethod
    def _read(cls, folder: Path, facts: dict[str, Any]) -> HiddenGate:
        tensors = load_file(folder / "gate.safetensors")
        weights = {
            name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")
        }
        shapes = [value.shape for value in weights.values() if value.ndim == 2]
        with isolated_rng(0):
            # dropout has no weights but a place in the order of the layers; it is off at inference
            network = mlp(shapes[0][1], 2, (shapes[0][0],), 0.5 if "4.weight" in weights else 0.0)
        network.load_state_dict(weights)
        return cls(int(facts["layer"]), tensors["centre"], tensors["scale"], network)


def prompt_states(model: Any, tokenizer: Any, texts: Sequence[str], layer: int) -> Tensor:
    """z [n, D], float32 on the CPU, texts of like length together; a text without a token counts as the end token.

    Raises:
        ModelError: a layer whose states are not to be found.
    """
    device = model.get_input_embeddings().weight.device
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    rows = [list(tokenizer(text)["input_ids"]) or [int(tokenizer.eos_token_id or 0)] for text in texts]
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    was = model.training
    model.eval()
    site = Site("residual", layer)
    try:
        with torch.no_grad(), recorded(model, [site]) as seen:
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                batch = pad([rows[i] for i in part], fill, side="right")
                batch = {name: value.to(device) for name, value in batch.items()}
                model(**batch, use_cache=False)
                z = mean_state(seen[site].float(), batch["attention_mask"]).cpu()
                for place, index in enumerate(part):
                    found[index] = z[place]
    finally:
        model.train(was)
    return torch.stack(found)


def _train(
    network: nn.Sequential, z: Tensor, labels: Tensor, config: TrainConfig, work: Path
) -> list[dict[str, float]]:
    """Cross-entropy with classes of equal weight."""
    counts = torch.bincount(labels, minlength=2)
    weight = len(labels) / (2 * counts.float())
    schedule = RowSchedule(
        len(labels), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed, world=world_size()
    )

    def collate(items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        rows = torch.tensor([row for row, _ in items])
        return {"z": z[rows], "labels": labels[rows]}

    def loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        logits = model(batch["z"])
        each = nn.functional.cross_entropy(logits, batch["labels"], weight.to(logits.device), reduction="none")
        total = each.sum() / schedule.batch_size
        return total, {"gate_loss": float(total.detach())}

    shutil.rmtree(work, ignore_errors=True)
    log = train(network, schedule, loss, config, folder=work, collator=collate, label="fit gate")
    shutil.rmtree(work, ignore_errors=True)
    network.to("cpu").eval()
    return log.values


__all__ = ["HiddenGate", "chosen_layer", "mean_state", "prompt_states"]
