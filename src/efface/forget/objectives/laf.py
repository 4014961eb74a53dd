"""Label-agnostic forgetting: pushes the extractor away from what it made of the forget rows, without anybody's label.

Paper: Shen et al., Label-Agnostic Forgetting, arXiv 2404.00506 (ICLR 2024), section 4. With e = g_theta(x) in R^d what goes
into the head, g_0 the extractor before, h an autoencoder of g_0(D) and h_f one of g_0(D_f) (`efface.train.embedding_vae`),
r(e; h) = ||h(e) - e||^2, n(r) = exp(r / (r + 1)), s(x) = 1 - cos(g_theta(x), g_0(x)), batches B_r and B_f,

    L_UE = sum_{B_r} n(r(e; h)) - sum_{B_f} n(r(e; h_f))
    L_RA = sum_{B_r} s(x) - |B_r| log sum_{u in B_f} exp(s(u) / tau)

Each step is one Adam step on L_UE, then one on L_RA at the new weights, two optimisers over the extractor; the head stays.
No label enters: they are taken out of both sets before a row is read. `repair` (LAF+R) then trains the head alone on the
labelled retain rows. The paper moves between argmin and argmax and drops terms; these are the losses that the code minimises.

Departures from the official code, and why: see `embedding_vae` for h; g_0(x) is read once, not kept as a second model; the
model is in evaluation mode throughout, which the code leaves to chance (an earlier phase happens to leave it there), so batch
norms keep their statistics and dropout is off; every retain row comes before any comes twice (zip restarts the loader each
epoch); L_RA is not bounded below, so a run ends where too few retain rows are still predicted as by the original model, and
goes back to the pass before; a repair pass covers all retain rows, not as many batches as the forget set has. At the start
s = 0 everywhere, where L_RA has no gradient: alone (`lr_ue=0`) it starts from rounding errors.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.agreement import Agreement
from efface.train.alternating import Turn, alternate
from efface.train.embedding_vae import EmbeddingVAE, EmbeddingVAEConfig, fit_vae
from efface.train.engine import isolated_rng, world_size
from efface.train.rows import RowSchedule
from efface.train.scopes import scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import Schedule, Stream, collator_of, whole_batch

CARD = Card(
    name="laf",
    system="laf",
    title="Label-agnostic forgetting",
    summary="Moves a classifier's features away from where the forget rows lay, by autoencoders and a contrast with the "
    "original features; uses no labels, the head stays.",
    paper="Shen et al., Label-Agnostic Forgetting, arXiv 2404.00506 (ICLR 2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("image", "text", "tabular"),
    subjects=("classifier",),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="representation_steering", survey_class="parameter_optimisation",
        level="weights_subset", threat_model="API user",
    ),
    defaults_source="official code, MNIST and Fashion-MNIST: 20 epochs, rates 5e-5 and 1e-4, tau 20, batch 32, z = 8",
)  # fmt: skip

SATURATED = 20.0
"""A median residual above which n(r) is flat: its slope is below e / 441."""
QUANTILES = (0.1, 0.5, 0.9)


class LAFConfig(FitConfig):
    """The two rates, the autoencoders, the early stop and the repair."""

    lr_ue: float = Field(5e-5, ge=0, description="rate of L_UE; code: 5e-5 (MNIST), 1e-5 (CIFAR-10); 0 leaves it out")
    lr_ra: float = Field(
        1e-4, ge=0, description="rate of L_RA; code: 1e-4 (MNIST), 4e-5 to 5e-5 (CIFAR-10); 0 leaves it out"
    )
    temperature: float = Field(20.0, gt=0, description="tau; code: 20 for a class, 5 for random rows (MNIST)")
    latent: int = Field(8, ge=1, description="z of the autoencoders; code: 8 (MNIST), 16 (CIFAR-10)")
    vae_epochs: float = Field(10, gt=0, description="code: 10")
    vae_learning_rate: float = Field(1e-3, gt=0, description="code: 1e-3")
    kl_weight: float = Field(0.025, ge=0, description="code: 0.025")
    vae_on: Literal["all", "retain"] = Field("all", description="what h is fitted on: all rows (code), or retain rows")
    official: bool = Field(False, description="autoencoders as released: sigmoid decoder on raw embeddings, sampled")
    stop_below: float = Field(
        0.9, ge=0, lt=1, description="end once fewer than this share of the retain rows are predicted as before; 0: never "
        "(efface; the code has no stop)",
    )  # fmt: skip
    watch_rows: int = Field(1000, ge=1, description="most retain rows that the stop looks at, drawn by the seed")
    repair: bool = Field(False, description="LAF+R: train the head on the labelled retain rows afterwards")
    repair_epochs: float = Field(1, gt=0, description="passes of the repair over the retain rows; paper: one")
    learning_rate: float = Field(1e-3, gt=0, description="of the repair alone; efface (the code names none)")
    epochs: float = Field(20, gt=0, description="passes over the forget set; code: 20 (MNIST), 40 (CIFAR-10)")
    batch_size: int = Field(32, ge=2, description="forget rows, and retain rows, in a step; code: 32")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="code: Adam")
    weight_decay: float = Field(0.0, ge=0, description="code: none while forgetting")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="code: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="code: none")
    max_grad_norm: float = Field(1e9, gt=0, description="the code clips nothing")
    norm_statistics: Literal["auto", "move", "frozen"] = Field("frozen", description="code: evaluation mode throughout")

    @field_validator("scope")
    @classmethod
    def _weights(cls, value: str) -> str:
        if value in ("lora", "mask"):
            raise ValueError("scope all or layers: two optimisers share the extractor's own weights")
        return value

    @field_validator("norm_statistics")
    @classmethod
    def _resting(cls, value: str) -> str:
        if value != "frozen":
            raise ValueError("frozen: the model is in evaluation mode while its weights move")
        return value

    @model_validator(mode="after")
    def _something(self) -> LAFConfig:
        if self.lr_ue == 0 and self.lr_ra == 0:
            raise ValueError("lr_ue and lr_ra are both 0, so nothing would move")
        if self.micro_batch_size not in (None, self.batch_size):
            raise ValueError("no micro_batch_size: the contrast needs the whole batch in one forward pass")
        return self


# -- equations -----------------------------------------------------------------------------------------------------


def bounded(r: Tensor) -> Tensor:
    """n(r) = exp(r / (r + 1)), in [1, e) for r >= 0; any shape."""
    return torch.exp(r / (r + 1))


def unlearning_loss(retain: Tensor, forget: Tensor) -> Tensor:
    """L_UE of residuals r(e; h) of the retain batch [B_r] and r(e; h_f) of the forget batch [B_f]."""
    return bounded(retain).sum() - bounded(forget).sum()


def drift(now: Tensor, before: Tensor) -> Tensor:
    """s = 1 - cos(g_theta(x), g_0(x)), in [0, 2], [B] of two [B, d]."""
    return 1 - nn.functional.cosine_similarity(now, before, dim=-1)


def alignment_loss(retain: Tensor, forget: Tensor, temperature: float) -> Tensor:
    """L_RA of drifts s of the retain batch [B_r] and the forget batch [B_f].

    Raises:
        InputError: fewer than two forget rows: the contrast is with nothing.
    """
    if len(forget) < 2:
        raise InputError(f"a forget batch of {len(forget)} row(s)", "two or more", "raise batch_size")
    return retain.sum() - len(retain) * torch.logsumexp(forget / temperature, 0)


# -- the parts of a run --------------------------------------------------------------------------------------------


def without_labels(data: Dataset) -> Dataset:
    """The rows with labels and targets taken out; a class 0, which nothing reads, stands in their place."""
    kept = data.remove_columns([name for name in ("label", "target") if name in data.column_names])
    return kept.add_column("label", [0] * len(kept))


def extractor(subject: Predictor, rows: Sequence[Sample]) -> dict[str, nn.Parameter]:
    """The parameters that may move and lie below the head, by name.

    Args:
        rows: some rows, on which the head alone must give the outputs.

    Raises:
        ModelError: no extractor, a head that shares weights with it, or outputs that are not the head's.
    """
    head = {id(p) for p in subject.head.parameters()}
    owners = [name for name, module in subject.model.named_modules()
              if any(id(p) in head for p in module.parameters(recurse=False))]  # fmt: skip
    others = [name for name in owners if name != subject.head_name]
    if others:
        raise ModelError(
            f"the head '{subject.head_name}' shares weights with '{others[0]}'", "a head of its own",
            "name the last linear layer with head=NAME",
        )  # fmt: skip
    if all(id(p) in head for p in subject.model.parameters()):
        raise ModelError(f"'{subject.source}' is a head alone", "an extractor below it", "use another method")
    features, outputs = subject.read(rows)
    with torch.no_grad():
        again = subject.head(features.to(subject.device, subject.dtype)).float().cpu()
    if not torch.allclose(again, outputs, rtol=0.05, atol=0.05 * float(outputs.abs().max())):
        raise ModelError(
            f"what '{subject.source}' says is not what its head '{subject.head_name}' says", "outputs of the head, unchanged",
            "name the last linear layer with head=NAME",
        )  # fmt: skip
    named = {name: p for name, p in subject.model.named_parameters() if id(p) not in head and p.requires_grad}
    if not named:
        raise ConfigError("a scope that holds the head alone", "a part of the extractor", "widen the scope")
    return named


class LAF(Method):
    """See the module."""

    card = CARD
    config_class = LAFConfig

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: two rows in each set.

        Raises:
            RequestError: a set of one row.
        """
        super().check(request, config)
        for name, data in (("forget", request.forget), ("retain", request.retain)):
            if data is not None and len(data) < 2:
                raise RequestError(f"laf with {len(data)} {name} row", "two or more: it contrasts rows", "give more")

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: not a classifier, or several processes.
            ModelError: the head cannot be separated, or its input is no vector.
            CheckFailed: the first pass already destroyed the predictions on the retain rows.
        """
        assert isinstance(config, LAFConfig)
        self.check_subject(subject)
        self.check(request, config)
        assert request.retain is not None
        if world_size() > 1:
            raise ConfigError(f"laf in {world_size()} processes", "one: its contrast needs the whole batch")
        base = subject.digest
        make_folder(work)
        forget = subject.encode_rows(without_labels(request.forget), name="forget")
        retain = subject.encode_rows(without_labels(request.retain), name="retain")
        labelled = subject.encode_rows(request.retain, name="retain") if config.repair else []
        with measure_cost(f"fit {CARD.name}") as cost, scoped(subject.model, config):
            live = extractor(subject, retain[:32])
            found = {name: subject.read(rows) for name, rows in (("forget", forget), ("retain", retain))}
            e_f, e_r = found["forget"][0], found["retain"][0]
            vaes, medians = self._autoencoders(subject, e_f, e_r, config, work)
            streams = {"forget": Stream(forget, {"before": e_f}), "retain": Stream(retain, {"before": e_r})}
            batch = whole_batch(len(forget), config.batch_size, None)
            schedule = Schedule(streams, anchor="forget", epochs=config.epochs, batch_size=batch, seed=config.seed)
            rng = np.random.default_rng([config.seed, 0x1AF])
            places = sorted(rng.permutation(len(retain))[: config.watch_rows].tolist())
            watch = Agreement(
                subject, [retain[i] for i in places], found["retain"][1].argmax(-1)[places], bound=config.stop_below,
                every=max(1, round(len(forget) / batch)), live=live, folder=work / "kept",
            )  # fmt: skip
            turns = self._turns(subject, vaes, live, config)
            tensors: dict[str, Tensor] = {**live, **(_head(subject) if config.repair else {})}
            with Snapshot(tensors, work / "base.safetensors") as snapshot:
                log = alternate(
                    subject.model, schedule, turns, config, folder=work / "checkpoints", collator=collator_of(subject),
                    label=f"fit {CARD.name}", training=False, after=watch,
                ).values  # fmt: skip
                watch.go_back(CARD.name)
                if config.repair:
                    log = [*log, *self._repair(subject, labelled, config, work / "repair")]
                told = {"median_residuals": medians, "agreement": watch.last, "stopped_at": watch.stopped_at,
                        "steps": schedule.steps}  # fmt: skip
                edit = WeightEdit.harvest(
                    subject, snapshot, out, base_digest=base, method=CARD.name, claim=str(CARD.claims),
                    config={**config.model_dump(mode="json"), "run": told},
                )  # fmt: skip
            cost.items = 2 * len(turns) * batch * (watch.stopped_at or schedule.steps)
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], log)

    @staticmethod
    def _autoencoders(
        subject: Predictor, e_f: Tensor, e_r: Tensor, config: LAFConfig, work: Path
    ) -> tuple[dict[str, EmbeddingVAE], dict[str, float]]:
        """h and h_f on the original embeddings, and their median residuals there; warns where n(r) is flat already."""
        both = torch.cat([e_r, e_f])
        settings = EmbeddingVAEConfig(
            latent=config.latent, kl_weight=config.kl_weight, official=config.official, epochs=config.vae_epochs,
            learning_rate=config.vae_learning_rate, batch_size=config.batch_size, seed=config.seed,
            checkpoint_seconds=config.checkpoint_seconds,
        )  # fmt: skip
        vaes, medians = {}, {}
        for name, rows in (("retain", both if config.vae_on == "all" else e_r), ("forget", e_f)):
            vae = fit_vae(
                rows, settings, folder=work / f"vae-{name}", units=both, label=f"fit {CARD.name}: VAE of {name}"
            )
            with torch.no_grad(), isolated_rng(config.seed):  # the released form draws
                medians[name] = float(vae.residual(e_r if name == "retain" else e_f).median())
            if medians[name] > SATURATED:
                warnings.warn(
                    f"laf: the median residual of the {name} rows is {medians[name]:.3g} before forgetting, where n(r) is "
                    "flat and L_UE hardly pushes; raise latent or vae_epochs", UserWarning, stacklevel=3,
                )  # fmt: skip
            vaes[name] = vae.to(subject.device)
        return vaes, medians

    @staticmethod
    def _turns(
        subject: Predictor, vaes: dict[str, EmbeddingVAE], live: dict[str, nn.Parameter], config: LAFConfig
    ) -> list[Turn]:
        """One optimiser for L_UE, one for L_RA, over the same parameters."""

        def unlearning(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
            r: dict[str, Tensor] = {}
            numbers: dict[str, float] = {}
            for name, vae in vaes.items():
                r[name] = vae.residual(subject.forward(model, batch[name]["inputs"])[0])
                at = torch.quantile(r[name].detach(), torch.tensor(QUANTILES, device=r[name].device)).tolist()
                numbers |= {f"r_{name}_q{round(100 * q)}": value for q, value in zip(QUANTILES, at, strict=True)}
            return unlearning_loss(r["retain"], r["forget"]), numbers

        def alignment(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
            s = {name: drift(subject.forward(model, batch[name]["inputs"])[0], batch[name]["before"]) for name in vaes}
            numbers = {f"s_{name}": float(values.detach().mean()) for name, values in s.items()}
            return alignment_loss(s["retain"], s["forget"], config.temperature), numbers

        moving = list(live.values())
        turns = [
            Turn("unlearning", unlearning, config.lr_ue, moving),
            Turn("alignment", alignment, config.lr_ra, moving),
        ]
        return [turn for turn in turns if turn.learning_rate > 0]

    @staticmethod
    def _repair(subject: Predictor, rows: Sequence[Sample], config: LAFConfig, folder: Path) -> list[dict[str, float]]:
        """The cross-entropy of labelled retain rows, minimised by the head alone on the features as they are now."""
        features, _ = subject.read(rows)
        features, targets = features.to(subject.dtype), torch.tensor([row.target for row in rows])

        def collate(items: list[tuple[int, int]]) -> dict[str, Any]:
            places = [row for row, _ in items]
            return {"features": features[places], "target": targets[places]}

        def loss(head: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
            return nn.functional.cross_entropy(head(batch["features"]).float(), batch["target"]), {}

        schedule = RowSchedule(len(rows), epochs=config.repair_epochs, batch_size=config.batch_size, seed=config.seed)
        turns = [Turn("repair", loss, config.learning_rate, list(subject.head.parameters()))]
        found = alternate(
            subject.head, schedule, turns, config, folder=folder, collator=collate, label=f"fit {CARD.name}: repair",
            training=False,
        )  # fmt: skip
        return found.values


def _head(subject: Predictor) -> dict[str, nn.Parameter]:
    """The head's parameters by their names in the model."""
    own = {id(p) for p in subject.head.parameters()}
    return {name: p for name, p in subject.model.named_parameters() if id(p) in own}


METHOD = LAF()
