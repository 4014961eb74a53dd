"""The gate of a pair of classes (SimLAP, arXiv 2410.18200): which dimensions of the space count when both are compared.

    e = (E[y1] + E[y2]) / 2,  g = sigmoid(W2 BN(ReLU(W1 BN(ReLU(e)))));   unfused: g(y1, y1) g(y2, y2)

It is symmetric, and a table of the classes it was trained on: another class has no gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import InputError, ModelError, nearest
from efface.run.files import make_folder, read_json, storage, write_json

FOLDER, WEIGHTS, FACTS = "gate", "model.safetensors", "gate.json"


class PairGate(nn.Module):
    """(y1 [b], y2 [b]) -> [b, D] in (0, 1).

    Args:
        classes: C.
        label_width: of a class's embedding.
        hidden: width of the layer between.
        width: D.
        fused: one gate of the mean embedding, else the product of both classes' gates.
    """

    def __init__(self, classes: int, label_width: int, hidden: int, width: int, *, fused: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(classes, label_width)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.BatchNorm1d(label_width), nn.Linear(label_width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden),
            nn.Linear(hidden, width),
        )  # fmt: skip
        self.fused = fused

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        for labels in (first, second):
            if labels.is_floating_point() or labels.ndim != 1 or labels.shape != first.shape:
                raise InputError(f"labels {list(labels.shape)} of type {labels.dtype}", "two rows of integers, [b]")
            if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < self.table.num_embeddings):
                raise InputError(
                    f"a class from {int(labels.min())} to {int(labels.max())}", f"0 to {self.table.num_embeddings - 1}",
                    "a class that was not trained on has no gate",
                )  # fmt: skip
        a, b = self.table(first), self.table(second)
        if self.fused:
            return torch.sigmoid(self.layers((a + b) / 2))
        n = len(first)
        both = torch.sigmoid(self.layers(torch.cat([a, b])))
        return both[:n] * both[n:]

    @torch.no_grad()
    def every(self) -> tuple[Tensor, Tensor]:
        """All pairs y1 <= y2 [P, 2] and their gates [P, D], by the running statistics, which are left as they are."""
        mode = self.training
        self.eval()
        try:
            n = self.table.num_embeddings
            pairs = torch.triu_indices(n, n, device=self.table.weight.device).T
            parts = [pairs[start : start + 8192] for start in range(0, len(pairs), 8192)]
            found = torch.cat([self(part[:, 0], part[:, 1]) for part in parts])
        finally:
            self.train(mode)
        return pairs, found


def gate_entropy(gates: Tensor) -> Tensor:
    """-g log g - (1 - g) log(1 - g) of each gate, in nats, of the shape of `gates`."""
    return -(torch.xlogy(gates, gates) + torch.xlogy(1 - gates, 1 - gates))


def save_gate(gate: PairGate, classes: Sequence[str], folder: Path) -> None:
    """Write a gate with its classes' names into a sub-folder of a model's folder."""
    place = make_folder(folder / FOLDER)
    linear = [layer for layer in gate.layers if isinstance(layer, nn.Linear)]
    sizes = {"label_width": linear[0].in_features, "hidden": linear[0].out_features, "width": linear[1].out_features}
    write_json(place / FACTS, {"classes": list(classes), "fused": gate.fused, **sizes})
    with storage(place):
        save_file({name: t.detach().cpu().contiguous() for name, t in gate.state_dict().items()}, place / WEIGHTS)


class TrainedGate:
    """A gate by the names of its classes.

    Args:
        gate: the trained module.
        classes: names in the order of its table.
    """

    def __init__(self, gate: PairGate, classes: Sequence[str]) -> None:
        self.gate, self.classes = gate.eval(), tuple(classes)

    @torch.no_grad()
    def between(self, first: str, second: str) -> Tensor:
        """[D] the gate of two classes.

        Raises:
            InputError: a class that was not trained on.
        """
        for name in (first, second):
            if name not in self.classes:
                raise InputError(
                    f"no gate for the class '{name}'", "a class of the training", nearest(name, self.classes)
                )
        a, b = (torch.tensor([self.classes.index(name)]) for name in (first, second))
        found: Tensor = self.gate(a, b)[0]
        return found


def load_gate(folder: str | Path) -> TrainedGate:
    """The gate that a SimLAP run left beside its encoder.

    Raises:
        ModelError: there is none.
    """
    place = Path(folder) / FOLDER
    if not (place / WEIGHTS).exists():
        raise ModelError(f"no gate in '{folder}'", f"a folder '{FOLDER}'", "train with simlap and gate=learned")
    facts = read_json(place / FACTS)
    gate = PairGate(len(facts["classes"]), facts["label_width"], facts["hidden"], facts["width"], fused=facts["fused"])
    gate.load_state_dict(load_file(place / WEIGHTS))
    return TrainedGate(gate, facts["classes"])
