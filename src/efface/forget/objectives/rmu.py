"""RMU: the states of forget texts are pushed to one random direction, those of retain texts are held where they were.

Paper: Li et al., The WMDP Benchmark, arXiv 2403.03218 (ICML 2024), section 4. With h_l the residual state [D] after layer l at
every token, h_l' that of the model before, u a random direction of length one:

    L = mean_t,d (h_l(x_f) - c u)^2 + alpha mean_t,d (h_l(x_r) - h_l'(x_r))^2

It changes weights and is meant to remove, but what it does is steer: a whole region of states is scrambled, and training on a
part of it brings the rest back. Its card says suppression.

Departures from the official code: padding does not count in the means; the reference states are computed once and kept, not
by a second model in memory; the layers that move are those up to l by any scope, not the down-projections of l - 2 to l by
parameter number (`scope=layers part=mlp`, the default, moves their whole MLPs).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Site, layers_of, recorded
from efface.subjects.prompts import Encoded
from efface.train.engine import world_size
from efface.train.reference import batches
from efface.train.scopes import layer_indices
from efface.train.streams import Schedule, Stream, whole_batch

CARD = Card(
    name="rmu",
    system="unlearning-taxonomy",
    title="RMU",
    summary="Steers the inner states of forget texts to a random direction and holds those of retain texts in place.",
    paper="Li et al., The WMDP Benchmark, arXiv 2403.03218 (ICML 2024)",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "reference", "gradients"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="representation_steering", survey_class="parameter_optimisation",
        level="weights_subset", threat_model="API user",
    ),
    defaults_source="official code for Zephyr-7B: layer 7 of 32, layers 5 to 7, coefficient 6.5, alpha 1200, learning rate 5e-5, "
    "batch 4",
)  # fmt: skip


class RMUConfig(FitConfig):
    """Where the states are read and how far they are pushed."""

    layer: int | None = Field(
        None, ge=0, description="l: states after this layer; default: at 7/32 of the depth (code: 7)"
    )
    coefficient: float = Field(6.5, gt=0, description="c: length of the target (code: 6.5 for Zephyr)")
    alpha: float = Field(1200.0, ge=0, description="weight of the retain term (code: 1200 for Zephyr)")
    scope: Literal["all", "layers"] = Field("layers", description="what moves")
    part: Literal["all", "mlp", "attention"] = Field("mlp", description="code: the down-projections")
    layers: str | None = Field(None, description="for scope=layers; default: l - 2 to l (code)")
    learning_rate: float = Field(5e-5, gt=0, description="code: 5e-5")
    batch_size: int = Field(4, ge=1, description="code: 4")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="code: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="code: constant")


def direction(width: int, seed: int) -> Tensor:
    """u [D], of length one: uniform numbers from 0 to 1, normalised, as in the code."""
    u = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(u, dim=0)


def where(depth: int, config: RMUConfig) -> tuple[int, RMUConfig]:
    """The layer whose states are read, and the configuration with the layers that move.

    Raises:
        ConfigError: no such layer, or only layers behind it may move.
    """
    chosen = layer_indices(config.layers, depth) if config.scope == "layers" and config.layers else None
    layer = config.layer if config.layer is not None else max(chosen) if chosen else round(7 / 32 * (depth - 1))
    if layer >= depth:
        raise ConfigError(f"layer={layer}", f"0 to {depth - 1}", "the model has no such layer")
    if chosen is None:
        return layer, config.model_copy(
            update={"layers": f"{max(0, layer - 2)}-{layer}"} if config.scope == "layers" else {}
        )
    if min(chosen) > layer:
        raise ConfigError(
            f"layers={config.layers} with layer={layer}", "a layer up to that one", "later ones do not reach it"
        )
    return layer, config


def state_loss(states: Tensor, target: Tensor, mask: Tensor, share: Tensor) -> Tensor:
    """Mean squared distance of states to a target, over tokens and dimensions.

    Args:
        states: [B, T, D].
        target: [D], or [B, T, D].
        mask: [B, T] bool: which positions count.
        share: [B] one over the counted positions of the whole optimiser step.
    """
    apart: Tensor = (states.float() - target).square().mean(-1) * mask  # [B, T]
    return (apart.sum(1) * share).sum()


def _states(model: Any, part: Mapping[str, Tensor], site: Site) -> tuple[Tensor, Tensor]:
    """[B, T - 1, D] states at every position that predicts a token, and their mask."""
    with recorded(model, [site], detach=False) as seen:
        model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False)
    return seen[site][:, :-1], part["attention_mask"][:, 1:].bool()


def reference_states(subject: CausalLM, rows: list[Encoded], site: Site) -> list[Tensor]:
    """N arrays [T_i - 1, D] on the CPU: the states before training."""
    found = [torch.empty(0)] * len(rows)
    with subject.evaluating() as model:
        for part in batches(rows, 16):
            states, mask = _states(model, subject.batch([rows[i] for i in part]), site)
            for index, row, keep in zip(part, states, mask, strict=True):
                found[index] = row[keep].float().cpu()
    return found


class RMU(Method):
    """See the module."""

    card = CARD
    config_class = RMUConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, RMUConfig)
        self.check(request, config)
        assert request.retain is not None
        layer, config = where(len(layers_of(subject.model)), config)
        site, width = Site("residual", layer), int(subject.model.get_input_embeddings().weight.shape[1])
        target = config.coefficient * direction(width, config.seed)

        def whole(rows: list[Encoded]) -> list[Encoded]:
            return [Encoded(row.ids, 1) for row in rows]  # every token counts, the question's too

        forget = whole(subject.encode_rows(request.forget, name="forget"))
        kept = whole(subject.encode_rows(request.retain, name="retain"))
        streams = {"forget": Stream(forget), "retain": Stream(kept, {"states": reference_states(subject, kept, site)})}
        batch = whole_batch(len(forget), config.batch_size, config.micro_batch_size, world_size())
        schedule = Schedule(streams, anchor="forget", epochs=config.epochs, batch_size=batch, seed=config.seed)

        def loss(model: Any, parts: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
            gone, keep = parts["forget"], parts["retain"]
            states, mask = _states(model, gone, site)
            pushed = state_loss(states, target.to(states.device), mask, gone["token_share"])
            states, mask = _states(model, keep, site)
            held = state_loss(states, keep["states"].to(states.device), mask, keep["token_share"])
            numbers = {"forget": float(pushed.detach()), "retain": float(held.detach())}
            return pushed + config.alpha * held, numbers

        return train_edit(self, subject, schedule, loss, config, work=work, out=out)


METHOD = RMU()
