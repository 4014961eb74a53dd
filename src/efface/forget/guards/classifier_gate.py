"""A prompt gate that is a fine-tuned sequence classifier: 1 for prompts to stop, 0 for all others.

Source: ECO, arXiv 2406.07933, section 3.2: RoBERTa-base with class-weighted cross-entropy, weight_c = N / n_c, and the best of
all epochs. Stored as safetensors, with its tokenizer, in the gate's folder.

Departures from the official code, and why: the best epoch is the one with the lowest sum of both classes' error rates, and of
equal ones the one that misses fewest forget prompts (there only the latter counts, and an early epoch that stops everything
misses none); the weights are scaled to a mean of one and averaged over the rows of a step, not
over the weights in a batch, so that a step means the same whatever classes it drew; Adam's beta2 and epsilon are the engine's
(0.999, 1e-8; there 0.98, 1e-6).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from efface.data.pictures import text_key
from efface.errors import ConfigError
from efface.forget.guards.prompt_gate import PromptGate, check_both
from efface.run.files import write_with
from efface.subjects.answers import predicted
from efface.subjects.headed import with_head
from efface.subjects.load import load
from efface.subjects.predictor import Predictor, load_predictor
from efface.subjects.samples import Sample
from efface.train.config import TrainConfig
from efface.train.engine import LossFunction, TrainLog, isolated_rng, train
from efface.train.streams import SampleCollator
from efface.train.supervised import supervised_schedule

Floats = npt.NDArray[np.float64]
LABELS = ("retain", "forget")
BEST = "best.safetensors"
DECIMALS = 6
"""Of a score: weights that were loaded lie elsewhere in memory, which moves the last bits of float32."""


def class_weights(targets: Sequence[int]) -> Tensor:
    """[2] N / n_c, scaled so that the mean over the rows is one: N / (2 n_c)."""
    counts = torch.bincount(torch.tensor(list(targets)), minlength=2).float()
    return counts.sum() / (2 * counts)


def weighted_loss(weights: Tensor) -> LossFunction:
    """The cross-entropy of a step, each row weighted by its class.

    Args:
        weights: [2].
    """

    def loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        part = batch["train"]
        logits = predicted(model, part["inputs"])  # [B, 2]
        rows = torch.nn.functional.cross_entropy(
            logits, part["target"], weight=weights.to(logits.device), reduction="none"
        )
        total = (rows * part["row_share"]).sum()
        return total, {"loss": float(total.detach())}

    return loss


class ClassifierGate(PromptGate):
    """See the module.

    Args:
        classifier: of texts, with the classes `retain` and `forget` in this order.
    """

    kind = "classifier"

    def __init__(self, classifier: Predictor) -> None:
        if classifier.modality != "text" or classifier.outputs != 2:
            raise ConfigError(
                f"a classifier of {classifier.modality}s with {classifier.outputs} outputs", "texts in, two classes out"
            )
        self.classifier = classifier

    @classmethod
    def fit(
        cls, forget: Sequence[str], keep: Sequence[str], *, encoder: str, config: TrainConfig, work: Path
    ) -> tuple[ClassifierGate, TrainLog]:
        """Fine-tune an encoder on prompts to stop and prompts to let pass.

        Args:
            encoder: hub id or folder of a text encoder (RoBERTa, BERT, ...); its head is new.
            config: optimisation.
            work: folder for checkpoints; a killed fit goes on from there.

        Raises:
            RequestError: one of the two is empty.
            ModelError: no such encoder, or one without a sequence classifier.
        """
        check_both(forget, keep)
        body = load(encoder, "encoder")
        with isolated_rng(config.seed):
            gate = cls(with_head(body, LABELS))
        targets = [1] * len(forget) + [0] * len(keep)
        rows = gate._samples([*forget, *keep], targets)
        schedule = supervised_schedule(rows, config)
        best = _Best(gate, rows[: len(forget)], rows[len(forget) :], work / BEST, len(rows) / schedule.batch_size)
        log = train(
            gate.classifier.model, schedule, weighted_loss(class_weights(targets)), config, folder=work / "checkpoints",
            collator=SampleCollator(gate.classifier.pad_id), label="fit classifier gate", callbacks=(best,),
        )  # fmt: skip
        gate.classifier.model.eval()
        best.put_back()
        return gate, log

    def _samples(self, texts: Sequence[str], targets: Sequence[int] | None = None) -> list[Sample]:
        made = []
        for text, target in zip(texts, targets or [0] * len(texts), strict=True):
            inputs = self.classifier.prepare(text)
            made.append(Sample(lambda inputs=inputs: inputs, target, text_key(text)))  # type: ignore[misc]
        return made

    def scores(self, texts: Sequence[str]) -> Floats:
        if not len(texts):
            return np.zeros(0)
        alone = [self._probabilities([row]) for row in self._samples(texts)]  # padding would move the last bits
        return np.concatenate(alone).round(DECIMALS)  # a score on the threshold must stay there after loading

    def _probabilities(self, rows: Sequence[Sample]) -> Floats:
        """[n] p(forget)."""
        return np.asarray(self.classifier.read(rows, 32)[1].double().softmax(-1)[:, 1].numpy())

    def _write(self, folder: Path) -> dict[str, Any]:
        self.classifier.save_into(folder / "classifier")
        return {}

    @classmethod
    def _read(cls, folder: Path, facts: dict[str, Any]) -> Self:
        return cls(load_predictor(folder / "classifier"))


class _Best(TrainerCallback):  # type: ignore[misc]
    """Keeps the weights of the best epoch; see the module. Of equal ones the last."""

    def __init__(
        self, gate: ClassifierGate, forget: Sequence[Sample], keep: Sequence[Sample], path: Path, steps: float
    ) -> None:
        self.gate, self.forget, self.keep, self.path, self.steps = gate, forget, keep, path, steps
        self.errors: tuple[float, int] | None = None

    def _errors(self, missed: int, alarms: int) -> tuple[float, int]:
        return missed / len(self.forget) + alarms / len(self.keep), missed

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.errors = None
        if state.global_step and self.path.exists():  # goes on from a checkpoint
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata()
            self.errors = self._errors(int(facts["missed"]), int(facts["alarms"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done = state.global_step
        if int(done / self.steps) == int((done - 1) / self.steps) and done < state.max_steps:
            return
        missed = int((self.gate._probabilities(self.forget) <= 0.5).sum())
        alarms = int((self.gate._probabilities(self.keep) > 0.5).sum())
        errors = self._errors(missed, alarms)
        if self.errors is None or errors <= self.errors:
            self.errors = errors
            tensors = {name: t.detach().cpu().contiguous() for name, t in self.gate.classifier.weights().items()}
            facts = {"missed": str(missed), "alarms": str(alarms)}
            write_with(self.path, lambda partial: save_file(tensors, partial, facts))

    def put_back(self) -> None:
        """The best weights into the classifier."""
        live = self.gate.classifier.weights()
        with torch.no_grad():
            for name, tensor in load_file(self.path).items():
                live[name].copy_(tensor)
        self.gate.classifier.changed()


__all__ = ["ClassifierGate", "class_weights", "weighted_loss"]
