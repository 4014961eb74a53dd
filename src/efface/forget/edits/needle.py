"""Needle: ruin the few MLP value vectors that write a concept, and leave every other weight alone.

The ablation of ConceptVectors, Hong et al., arXiv 2406.11614 (2024): v <- v + eps, eps ~ N(0, s^2 I) with s = 0.1; or,
starting from that noise, any forgetting loss trained on those columns alone. The vectors are given by layer and column (the
paper mined one for each concept in 7B models by hand), or located by attribution k_j (E (w * v_j))[answer] on the forget set.

Departures and why: `relative` scales the noise by each vector's own size, since 0.1 means nothing without it; `replace` puts
noise in the vector's place, so nothing of it is left; small models spread a concept over tens of vectors, hence `count`; the
column mask holds after every optimiser step, as weight decay would move what only the gradient is masked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method, find_method
from efface.forget.objective import ObjectiveConfig, ObjectiveMethod, Prepared
from efface.measure.value_vectors import Place, attribution, parse_places, ranked, value_vector
from efface.run.cost import measure_cost
from efface.run.files import make_folder
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import layers_of, value_matrix
from efface.train.engine import train
from efface.train.mask_guard import guarding
from efface.train.scopes import layer_indices, scoped
from efface.train.snapshot import Snapshot
from efface.train.weight_mask import MaskFacts, WeightMask

CARD = Card(
    name="needle",
    system="concept-vectors",
    title="Needle: ablation of concept vectors",
    summary="Puts noise on the few MLP value vectors that write the answers to be forgotten, or trains those columns alone; "
    "no other weight moves.",
    paper="Hong et al., Intrinsic evaluation of unlearning using parametric knowledge traces, arXiv 2406.11614 (2024)",
    verb="forget",
    mechanism="edits",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget",),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="weight holder",
    ),
    defaults_source="paper: one vector a concept, additive noise of 0.1; trained variant: learning rate 0.1, batch 16",
)  # fmt: skip


class NeedleConfig(FitConfig):
    """Which vectors, what noise, and whether the columns train afterwards."""

    scope: Literal["all", "layers", "lora", "mask"] = Field(
        "all", description="all, or layers in which to locate vectors"
    )
    vectors: str | None = Field(None, description="layer:column pairs, '3:17,4:2'; default: located by attribution")
    count: int = Field(1, ge=1, description="vectors to locate (paper: 1 in 7B models; small models need tens)")
    noise: Literal["add", "replace"] = Field("add", description="add to the vector (paper), or put in its place")
    scale: float = Field(0.1, gt=0, description="standard deviation of the noise (paper: 0.1)")
    relative: bool = Field(False, description="scale is a multiple of the vector's root mean square (paper: absolute)")
    trained_by: str = Field(
        "none", description="none, or an objective's name: trains those columns alone (paper's Needle)"
    )
    learning_rate: float = Field(0.1, gt=0, description="trained_by only; paper: 0.1 to 0.5")
    epochs: float = Field(3, gt=0, description="trained_by only; paper: 1, 2, 3, 5 or 10")
    batch_size: int = Field(16, ge=1, description="trained_by only; paper: 1 x 16")

    @field_validator("scope")
    @classmethod
    def _whole_vectors(cls, value: str) -> str:
        if value not in {"all", "layers"}:
            raise ValueError("needle chooses single value vectors itself: scope all or layers")
        return value


def noised(vector: Tensor, noise: Tensor, *, scale: float, relative: bool, replace: bool) -> Tensor:
    """v + s eps, or s eps alone, in float64.

    Args:
        vector: v [d].
        noise: eps [d], standard normal.
        scale: s, or with `relative` s times the root mean square of v.
    """
    v = vector.double()
    s = scale * float(v.square().mean().sqrt()) if relative else scale
    return s * noise.double() + (0.0 if replace else v)


def column_mask(subject: CausalLM, places: Sequence[Place]) -> WeightMask:
    """True at the entries of the vectors, for the parameters that hold them."""
    masks: dict[str, Tensor] = {}
    for layer in sorted({place.layer for place in places}):
        matrix = value_matrix(subject.model, layer)
        name, parameter = next(
            (name, p) for name, p in subject.weights().items() if p.data_ptr() == matrix.data_ptr()
        )  # fmt: skip
        mask = torch.zeros(matrix.shape, dtype=torch.bool, device=matrix.device)
        mask[:, [place.dim for place in places if place.layer == layer]] = True
        masks[name] = mask if parameter.stride() == matrix.stride() else mask.T.contiguous()
    return WeightMask(masks, MaskFacts(selector="value vectors", model=subject.digest))


class Needle(Method):
    """See the module."""

    card = CARD
    config_class = NeedleConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            ConfigError: a vector that the model lacks, more vectors than there are, or an unknown objective.
            ModelError: an architecture without a known down-projection.
        """
        assert isinstance(config, NeedleConfig)
        self.check(request, config)
        base, log = subject.digest, list[dict[str, float]]()
        make_folder(work)
        with measure_cost(f"fit {CARD.name}") as cost, ExitStack() as stack:
            places = self.places(subject, request, config)
            mask = column_mask(subject, places)
            model = stack.enter_context(scoped(subject.model, FitConfig(), mask))
            guards = stack.enter_context(guarding(model, mask))
            trained = self._training(subject, request, config)  # before the noise: the reference is the original
            snapshot = stack.enter_context(Snapshot(dict(mask.parameters(model)), work / "base.safetensors"))
            generator = torch.Generator().manual_seed(config.seed)
            for place in places:
                vector = value_vector(subject, place)
                noise = torch.randn(len(vector), generator=generator, dtype=torch.float64).to(vector.device)
                new = noised(
                    vector.detach(),
                    noise,
                    scale=config.scale,
                    relative=config.relative,
                    replace=config.noise == "replace",
                )
                with torch.no_grad():
                    vector.copy_(new.to(vector.dtype))
            cost.items = len(places)
            if trained is not None:
                schedule = trained.schedule
                log = train(
                    model, schedule, trained.loss, config, folder=work / "checkpoints", pad_id=subject.pad_id,
                    label=f"fit {CARD.name}", callbacks=(*guards, *trained.callbacks),
                ).values  # fmt: skip
                model.eval()
                cost.items, cost.tokens = len(schedule) * len(schedule.streams), schedule.total_tokens
            edit = WeightEdit.harvest(
                subject, snapshot, out, base_digest=base, method=CARD.name, claim=str(CARD.claims),
                config={**config.model_dump(mode="json"), "vectors_chosen": [f"{p.layer}:{p.dim}" for p in places]},
            )  # fmt: skip
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], log)

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: what the training objective needs."""
        super().check(request, config)
        assert isinstance(config, NeedleConfig)
        if config.trained_by != "none":
            method = self._objective(config.trained_by)
            method.check(request, method.configure())

    def _training(self, subject: CausalLM, request: Request, config: NeedleConfig) -> Prepared | None:
        """Batches and loss of the objective that trains the columns, if one does."""
        if config.trained_by == "none":
            return None
        method = self._objective(config.trained_by)
        other = {"scope", "layers", "mask"}
        own = method.configure({key: getattr(config, key) for key in FitConfig.model_fields if key not in other})
        assert isinstance(own, ObjectiveConfig)
        return method.prepare(subject, request, own)

    @staticmethod
    def _objective(name: str) -> ObjectiveMethod:
        method = find_method(name)
        if not isinstance(method, ObjectiveMethod) or not method.plain:
            raise ConfigError(
                f"trained_by='{name}'", "an objective without a procedure of its own, such as npo or gradient-difference",
                "or none",
            )  # fmt: skip
        return method

    @staticmethod
    def places(subject: CausalLM, request: Request, config: NeedleConfig) -> list[Place]:
        """The vectors: as given, or the first `count` by attribution on the forget set, within `layers`."""
        depth = len(layers_of(subject.model))
        layers = None if config.layers is None else sorted(layer_indices(config.layers, depth))
        if config.scope == "layers" and layers is None:
            raise ConfigError("scope=layers without layers", "layers='0,3-5'", "say in which layers to look")
        if config.vectors is not None:
            places = parse_places(config.vectors)
            for place in places:
                value_vector(subject, place)
            outside = [place for place in places if layers is not None and place.layer not in layers]
            if outside:
                raise ConfigError(f"vector {outside[0].layer}:{outside[0].dim}", f"a vector of layers {layers}")
            return places
        order = ranked(attribution(subject, subject.encode_rows(request.forget, name="forget")), layers)
        if config.count > len(order):
            raise ConfigError(f"count={config.count}", f"at most {len(order)} value vectors")
        return order[: config.count]


METHOD = Needle()
