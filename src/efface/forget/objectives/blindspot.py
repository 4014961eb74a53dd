"""Blindspot: answer on the rows to forget as a model would that was trained for a moment and has never seen them.

Paper: Tarun et al., Deep regression unlearning, arXiv 2210.08196 (ICML 2023). A proxy p is trained from fresh
weights on the retain set for a few passes. Then, with A_j the activations of matched layer j, their attention map
Q(A) = normalise_2(mean_c A_c^2) for each row, and c the share of rows to forget in a batch,

    L_f = mean |y_hat - y_hat_p| + lambda sum_j mean (Q(A_j) - Q(A_j^p))^2,   L_r = mean |y_hat - y|
    L = c L_f + (1 - c) L_r

For a classifier this is the bad-teacher form (arXiv 2205.08096) with the proxy as teacher: KL(p || model) in place of the
first term, the cross-entropy in place of L_r. One model is in memory: the proxy is trained in the subject's place, what it
says about the rows to forget is kept on the disk, and the subject's weights come back before they are trained.

Departures from the official code: both terms are weighted by the rows of the whole optimiser step, so accumulation changes
nothing; `sampling=balanced` repeats the forget rows until they are half of the batches, since at c = 1/256 they get almost no
gradient; the proxy starts from weights that no other run of the same seed starts from; outputs of unequal shape are refused,
where [B] against [B, 1] would silently be B x B. The maps are those of `efface.forget.activation_maps`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, pad

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import InputError
from efface.forget.activation_maps import ActivationMap, activation_maps, map_distance, matched_layers
from efface.forget.exact import retrain
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objectives.gaussian_amnesiac import refuse_bad_targets
from efface.run.cost import measure_cost
from efface.run.files import make_folder, write_with
from efface.subjects.answers import predicted, sample_answers
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.engine import train, world_size
from efface.train.mask_selectors import MaskRows
from efface.train.scopes import ScopeConfig, scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import Schedule, Stream, collator_of, whole_batch
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="blindspot",
    system="deep-regression-unlearning",
    title="Blindspot",
    summary="Matches a briefly trained model that never saw the forget set there, in outputs and activation maps.",
    paper="Tarun et al., Deep regression unlearning, arXiv 2210.08196 (ICML 2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("regressor", "classifier"),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="distillation", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="official code, AgeDB: proxy 2 epochs of Adam at 0.01; then 1 epoch of Adam at 1e-3, batch 256, lambda 50",
)  # fmt: skip

PROXY_SEED = 0xB11D
"""Added to the seed for the proxy: the subject itself may have been trained from fresh weights of the same seed."""


class BlindspotConfig(FitConfig):
    """The proxy and what of it is matched."""

    proxy_epochs: float = Field(
        2, gt=0, description="passes of the proxy over the retain set, weak but not random; code: 2 (AgeDB), 10 (STS-B)"
    )
    proxy_learning_rate: float = Field(0.01, gt=0, description="official code, AgeDB: 0.01")
    proxy_model: str | None = Field(
        None, description="checkpoint from before the forget set was learnt, for the proxy; published: fresh weights"
    )
    map_weight: float = Field(50.0, ge=0, description="lambda; official code: 50, for maps of unit norm and their mean")
    layers_matched: tuple[str, ...] = Field(
        (), description="modules whose outputs are matched; default: every ReLU or other activation"
    )
    sampling: Literal["mixed", "balanced"] = Field(
        "mixed", description="batches as the data come (published), or forget rows repeated to be half of them"
    )
    learning_rate: float = Field(1e-3, gt=0, description="official code, AgeDB: 1e-3")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="official code: Adam")
    epochs: float = Field(1, gt=0, description="passes over all rows; official code: 1 (AgeDB), 5 (STS-B)")
    batch_size: int = Field(256, ge=1, description="official code: 256")
    weight_decay: float = Field(0.0, ge=0, description="official code: none")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "constant", description="official code: its plateau scheduler is made and never stepped"
    )
    max_grad_norm: float = Field(1e9, gt=0, description="official code: no clipping")


# -- the equation --------------------------------------------------------------------------------------------------


def absolute_error(values: Tensor, targets: Tensor) -> Tensor:
    """|values - targets|, for equal shapes only.

    Raises:
        InputError: shapes that would be broadcast.
    """
    if values.shape != targets.shape:
        raise InputError(f"values {list(values.shape)} and targets {list(targets.shape)}", "equal shapes")
    return (values - targets).abs()


def output_distance(said: Tensor, proxy: Tensor, task: str) -> Tensor:
    """[B] of the outputs [B, K]: |y_hat - y_hat_p| of numbers, KL(p || model) of logits."""
    if task == "regression":
        return absolute_error(said, proxy).sum(1)
    return kl_div(said.log_softmax(1), proxy.log_softmax(1), reduction="none", log_target=True).sum(1)


def label_loss(said: Tensor, target: Tensor, task: str) -> Tensor:
    """[B] of the outputs [B, K] and the true targets [B]: |y_hat - y|, or the cross-entropy."""
    return (
        absolute_error(said.squeeze(1), target)
        if task == "regression"
        else cross_entropy(said, target, reduction="none")
    )


def looked_at(
    model: Any, inner: nn.Module, inputs: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[Tensor, list[ActivationMap]]:
    """Outputs [B, K] and maps of one pass of `model`, which is `inner` or a wrapper around it."""
    with activation_maps(inner, names, inputs.get("attention_mask")) as maps:
        said = predicted(model, inputs)
    return said, maps


def seen_by(subject: Predictor, rows: Sequence[Sample], names: Sequence[str], size: int = 256) -> dict[str, Tensor]:
    """`proxy` [N, K], the outputs, and `map0`, `map1`, ... [N, P_j] of the model as it is, on the CPU."""
    parts: list[dict[str, Tensor]] = []
    with subject.evaluating() as model:
        for start in range(0, len(rows), size):
            inputs = subject.batch(rows[start : start + size])["inputs"]
            assert isinstance(inputs, dict)
            said, maps = looked_at(model, model, inputs, names)
            parts.append({"proxy": said.cpu(), **{f"map{j}": q.values.cpu() for j, q in enumerate(maps)}})
    found = {}
    for name in parts[0]:
        width = max(part[name].shape[1] for part in parts)  # texts: batches differ in length
        found[name] = torch.cat([pad(part[name], (0, width - part[name].shape[1])) for part in parts])
    return found


# -- the method ----------------------------------------------------------------------------------------------------


class Blindspot(Method):
    """See the module."""

    card = CARD
    config_class = BlindspotConfig

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: finite targets on the retain rows (those of the forget rows are not used).

        Raises:
            RequestError: naming the row.
        """
        super().check(request, config)
        assert request.retain is not None
        refuse_bad_targets(request.retain, "retain")

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`. The log begins with the mean loss of the proxy, before and after its training.

        Raises:
            ConfigError: the model is of another kind, or there is nothing to match.
            RequestError: see `check`.
        """
        assert isinstance(config, BlindspotConfig)
        self.check_subject(subject)
        self.check(request, config)
        assert request.retain is not None
        forget = subject.encode_rows(request.forget, name="forget")
        retain = subject.encode_rows(request.retain, name="retain")
        names = matched_layers(subject.model, config.layers_matched) if config.map_weight else ()
        with measure_cost("train proxy") as cost:
            said, told = self.proxy(subject, forget, retain, names, config, make_folder(work))
            cost.items = round(config.proxy_epochs * len(retain))
        schedule = self.schedule(forget, retain, said, config)

        def loss(model: Any, parts: dict[str, dict[str, Any]]) -> tuple[Tensor, dict[str, float]]:
            return self.loss(subject, model, parts["train"], names, config)

        fitted = train_edit(
            self, subject, schedule, loss, config, work=work, out=out, mask_rows=MaskRows(forget, retain)
        )
        return Fitted(fitted.edit, [cost, *fitted.costs], [told, *fitted.log])

    def proxy(
        self, subject: Predictor, forget: list[Sample], retain: list[Sample], names: Sequence[str], config: BlindspotConfig,
        work: Path,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:  # fmt: skip
        """What the proxy says about the forget rows, and its mean loss on the retain rows before and after its training.

        It is trained in the subject's place; the subject's weights wait on the disk.
        """
        path = work / "proxy.safetensors"
        if not path.exists():
            own = config.model_copy(update={
                "learning_rate": config.proxy_learning_rate, "epochs": config.proxy_epochs, "seed": config.seed + PROXY_SEED,
            })  # fmt: skip
            start = retrain.METHOD.configure({"base_model": config.proxy_model, "seed": own.seed})
            assert isinstance(start, retrain.RetrainConfig)
            with scoped(subject.model, ScopeConfig()), Snapshot(subject.weights(), work / "subject.safetensors"):
                retrain.METHOD._restart(subject, start)
                before = mean_loss(subject, retain)
                train(
                    subject.model, supervised_schedule(retain, own), answer_loss, own, folder=work / "proxy",
                    collator=collator_of(subject), label="train proxy",
                )  # fmt: skip
                subject.model.eval()
                found = seen_by(subject, forget, names)
                found |= {"before": torch.tensor(before), "after": torch.tensor(mean_loss(subject, retain))}
            subject.changed()
            write_with(path, lambda partial: save_file(found, partial))
        said = load_file(path)
        told = {f"proxy_{name}": float(said.pop(name)) for name in ("before", "after")}
        if not told["proxy_after"] < told["proxy_before"]:
            warnings.warn(
                f"the proxy learnt nothing: its mean loss on the retain set is {told['proxy_after']:.4g} after "
                f"{config.proxy_epochs:g} passes and was {told['proxy_before']:.4g}; raise proxy_epochs, or mend "
                "proxy_learning_rate",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        return said, told

    @staticmethod
    def schedule(
        forget: list[Sample], retain: list[Sample], said: Mapping[str, Tensor], config: BlindspotConfig
    ) -> Schedule:
        """One stream of all rows: `forget` says which are to be forgotten, the proxy's words travel with them.

        Retain rows share one block of zeros in their place.
        """
        rounds = max(1, round(len(retain) / len(forget))) if config.sampling == "balanced" else 1
        rows = forget * rounds + retain
        batch = whole_batch(len(rows), config.batch_size, config.micro_batch_size, world_size())
        if batch * len(forget) * rounds < len(rows):
            warnings.warn(
                f"{len(forget)} forget rows among {len(rows)}: most batches of {batch} have none; set sampling=balanced",
                UserWarning, stacklevel=3,
            )  # fmt: skip
        extras: dict[str, list[Tensor]] = {
            name: [*list(values) * rounds, *[torch.zeros(values.shape[1])] * len(retain)] for name, values in said.items()
        }  # fmt: skip
        extras["forget"] = [torch.tensor(1.0)] * (len(forget) * rounds) + [torch.tensor(0.0)] * len(retain)
        return Schedule(
            {"train": Stream(rows, extras)}, anchor="train", epochs=config.epochs, batch_size=batch, seed=config.seed
        )

    @staticmethod
    def loss(
        subject: Predictor, model: Any, part: dict[str, Any], names: Sequence[str], config: BlindspotConfig
    ) -> tuple[Tensor, dict[str, float]]:
        """L of one forward pass, and the numbers of the log: sums over the optimiser step, weighted as in L."""
        said, maps = looked_at(model, subject.model, part["inputs"], names)
        chosen, share = part["forget"].bool(), part["row_share"]
        own = [ActivationMap(q.values[chosen], q.places[chosen], q.ragged) for q in maps]
        proxy = [part[f"map{j}"][chosen] for j in range(sum(key.startswith("map") for key in part))]
        outputs = (output_distance(said[chosen], part["proxy"][chosen], subject.task) * share[chosen]).sum()
        matched = (map_distance(own, proxy) * share[chosen]).sum()
        kept = (label_loss(said[~chosen], part["target"][~chosen], subject.task) * share[~chosen]).sum()
        numbers = {"forget": outputs, "maps": matched, "retain": kept, "forget_share": share[chosen].sum()}
        total = outputs + config.map_weight * matched + kept
        return total, {name: float(value.detach()) for name, value in numbers.items()}


def mean_loss(subject: Predictor, rows: Sequence[Sample]) -> float:
    """Mean negative log-probability of the rows' targets."""
    _, said = subject.read(rows)
    return -float(sample_answers(said, torch.tensor([row.target for row in rows])).logp_sum.mean())


METHOD = Blindspot()
