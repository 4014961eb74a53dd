"""Neuron Adjust: neurons that fire as on the forget skill are moved to where they are on the retain skill, at run time.

Paper: Li et al., Effective Skill Unlearning through Intervention and Abstention, arXiv 2503.21730 (NAACL 2025). With z the
pre-activation of an MLP's neuron (its gate), and its normals (mu_f, sigma_f) on the forget and (mu_r, sigma_r) on the retain
rows, the neurons of all layers with the largest difference of means are chosen; where n_f(z) > n_r(z), with probability
n_f / (n_f + n_r),

    z' = mu_r - sigma_r (z - mu_f) / sigma_f

that is, z in the retain distribution, mirrored round its mean. It holds for every token, of the prompt and of the answer.

Departures from the official code, and why: sigmas are standard deviations (there, sigma_f is filled from the means, and
both are variances); every element has a draw of its own (there, one coin for all neurons and tokens of a row), which
depends on prompt, position and neuron alone, so batch, padding and cache change nothing; |mu_f - mu_r| chooses neurons on
both sides (`select=signed` is the code's); densities are compared as logarithms, in float32. Nothing is removed: the skill
is in the weights, and the effect is mild.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import RequestError
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.numerics.counter_draws import mixed, uniform
from efface.numerics.running_variance import RunningVariance
from efface.run.cost import measure_cost
from efface.run.files import storage
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, GuardedModel, Pass
from efface.subjects.hooks import Change, Site, layers_of, replaced
from efface.subjects.neuron_statistics import Tokens, neuron_statistics, some
from efface.train.scopes import layer_indices

CARD = Card(
    name="neuron-adjust",
    system="skill-unlearning",
    title="Neuron Adjust",
    summary="Measures each MLP neuron on the skill to forget and on what to keep; at run time the neurons that differ most are "
    "shifted from the one distribution to the other. No training, no weight changes, and a mild effect.",
    paper="Li et al., Effective skill unlearning through intervention and abstention, arXiv 2503.21730 (NAACL 2025)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="activation_hook", survey_class="filter", level="activation",
        sequential_ok=False, threat_model="API user",
    ),
    defaults_source="paper: 3 % of the neurons of all layers (math and code; languages 0.5 %), 200 probing rows a set; two-sided "
    "choice is efface's own",
)  # fmt: skip

SMALLEST = 1e-6
"""Standard deviations below it count as it."""

Select = Literal["absolute", "signed", "standardised"]


class NeuronAdjustConfig(FitConfig):
    """What is measured and how many neurons are moved. The keys of training are not used: nothing is trained."""

    scope: Literal["all", "layers"] = Field("all", description="all layers (paper), or those that layers names")
    share: float = Field(0.03, gt=0, le=1, description="P, share of the neurons; paper: 0.03 (languages: 0.005)")
    select: Select = Field(
        "absolute", description="rank by |mu_f - mu_r|, by mu_f - mu_r (the code), or by |mu_f - mu_r| / sigma_r"
    )
    samples: int = Field(200, ge=2, description="probing rows of each set, at most; paper: 200")
    tokens: Tokens = Field("all", description="tokens that are measured: of whole rows, of prompts, or of answers")

    @model_validator(mode="after")
    def _layers_with_scope(self) -> NeuronAdjustConfig:
        if (self.layers is None) != (self.scope == "all"):
            raise ValueError("scope=layers and layers='0,3-5' go together")
        return self


def log_normal(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log density of a normal without the constant; shapes broadcast."""
    return -0.5 * ((z - mean) / std).square() - std.log()


def adjusted(z: Tensor, draws: Tensor, mu_f: Tensor, sigma_f: Tensor, mu_r: Tensor, sigma_r: Tensor) -> Tensor:
    """z' of the module's equation where it applies, z elsewhere.

    Args:
        z: [..., N] pre-activations.
        draws: [..., N] uniform in [0, 1), one for each element.
        mu_f, sigma_f, mu_r, sigma_r: [N]; standard deviations, not variances.
    """
    sigma_f, sigma_r = sigma_f.clamp_min(SMALLEST), sigma_r.clamp_min(SMALLEST)
    ahead = log_normal(z, mu_f, sigma_f) - log_normal(z, mu_r, sigma_r)  # log n_f - log n_r
    moves = (ahead > 0) & (draws < torch.sigmoid(ahead))
    return torch.where(moves, mu_r - sigma_r * (z - mu_f) / sigma_f, z)


def neuron_scores(forget: RunningVariance, retain: RunningVariance, select: Select) -> Tensor:
    """[h] how much each neuron of a layer belongs to the forget skill."""
    difference = forget.mean - retain.mean
    if select == "signed":
        return difference
    return difference.abs() / (retain.std.clamp_min(SMALLEST) if select == "standardised" else 1.0)


def chosen_neurons(scores: dict[int, Tensor], share: float) -> dict[int, Tensor]:
    """Layer -> indices, rising: the `share` of the neurons of all layers together with the largest scores, one at least."""
    sizes = {layer: len(values) for layer, values in scores.items()}
    count = max(1, round(share * sum(sizes.values())))
    order = torch.cat(list(scores.values())).argsort(descending=True, stable=True)[:count].sort().values
    found, start = {}, 0
    for layer, size in sizes.items():
        inside = order[(order >= start) & (order < start + size)] - start
        if len(inside):
            found[layer] = inside
        start += size
    return found


class AdjustedModel(GuardedModel):
    """A model of which some neurons are adjusted.

    Args:
        parts: layer -> `index` [N] and `mu_f`, `sigma_f`, `mu_r`, `sigma_r` [N] of its neurons.
        seed: of the draws.
    """

    def __init__(self, base: Any, parts: dict[int, dict[str, Tensor]], seed: int, seal: str | None = None) -> None:
        super().__init__(base, seal)
        self.parts, self.draw_seed = parts, seed
        self._sizes = [len(part["index"]) for part in parts.values()]
        # of all chosen neurons together: a step draws once, not once a layer
        self._index = torch.cat([part["index"] for part in parts.values()])
        self._layer = torch.repeat_interleave(torch.tensor(list(parts)), torch.tensor(self._sizes))

    def begin(self, asked: Asked) -> None:
        """A name for each prompt, which no padding changes, and where its first token stands."""
        first = asked.mask.int().argmax(1)  # [B]
        place = torch.arange(asked.ids.shape[1], device=asked.ids.device) - first[:, None]
        named = mixed(mixed(asked.ids + self.draw_seed * 1_000_003) + place)  # [B, T]
        asked.memory["name"] = (named * asked.prompt).sum(1)
        asked.memory["first"] = first

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        """Adjust the chosen neurons in this pass."""
        rows = [now.asked.rows(now.asked.memory[key], len(now.ids)) for key in ("name", "first")]
        place = torch.arange(now.start, now.start + now.ids.shape[1], device=now.ids.device) - rows[1][:, None]
        names = mixed(rows[0][:, None] + mixed(place))  # [B', T']
        draws = uniform(mixed(names[..., None] + self._layer.to(names.device)) + self._index.to(names.device))
        split = zip(self.parts, torch.split(draws, self._sizes, dim=-1), strict=True)  # [B', T', N] of each layer
        with replaced(self.base, {Site("gate", layer): self._change(layer, own) for layer, own in split}):
            yield

    def _change(self, layer: int, draws: Tensor) -> Change:
        def change(z: Tensor) -> Tensor:
            part = dict(self._there(layer, z.device))
            index = part.pop("index")
            z[..., index] = adjusted(z[..., index].float(), draws.to(z.device), **part).to(z.dtype)
            return z

        return change

    def _there(self, layer: int, device: torch.device) -> dict[str, Tensor]:
        """A layer's numbers where its states are; moved once."""
        if self.parts[layer]["index"].device != device:
            self.parts[layer] = {key: value.to(device) for key, value in self.parts[layer].items()}
        return self.parts[layer]

    def correct(self, now: Pass, output: Any) -> Any:
        """Nothing is left to do."""
        return output


class NeuronAdjustEdit(GuardEdit):
    """`neurons.safetensors`: the chosen neurons of each layer with their statistics."""

    kind = "neuron-adjust"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> AdjustedModel:
        parts: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(folder / "neurons.safetensors").items():
            layer, key = name.split(".")
            parts.setdefault(int(layer), {})[key] = value
        return AdjustedModel(subject.model, parts, int(config["seed"]), seal)


class NeuronAdjust(Method):
    """See the module."""

    card = CARD
    config_class = NeuronAdjustConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Measure and choose; see `Method.fit`.

        Raises:
            RequestError: no retain set, or a row that does not fit the context.
            ModelError: an architecture whose MLP is not known.
        """
        assert isinstance(config, NeuronAdjustConfig)
        self.check(request, config)
        if request.retain is None:
            raise RequestError("neuron-adjust without a retain set", "rows to keep", "give them with --retain")
        depth = len(layers_of(subject.model))
        layers = range(depth) if config.layers is None else sorted(layer_indices(config.layers, depth))
        sites = [Site("gate", layer) for layer in layers]
        with measure_cost(f"fit {CARD.name}") as cost:
            forget, retain = (
                neuron_statistics(
                    subject, rows, sites, tokens=config.tokens, batch_size=config.micro_batch_size or config.batch_size
                )
                for rows in (
                    subject.encode_rows(data.select(some(len(data), config.samples, config.seed)), name=name)
                    for name, data in (("forget", request.forget), ("retain", request.retain))
                )
            )
            scores = {site.layer: neuron_scores(forget[site], retain[site], config.select) for site in sites}
            chosen = chosen_neurons(scores, config.share)
            tensors = {}
            for layer, index in chosen.items():
                f, r = forget[Site("gate", layer)], retain[Site("gate", layer)]
                found = {"mu_f": f.mean, "sigma_f": f.std, "mu_r": r.mean, "sigma_r": r.std}
                tensors[f"{layer}.index"] = index
                tensors |= {f"{layer}.{key}": value[index].float() for key, value in found.items()}

            def write(folder: Path) -> None:
                with storage(folder):
                    save_file(tensors, folder / "neurons.safetensors")

            counts = {str(layer): len(index) for layer, index in chosen.items()}
            edit = NeuronAdjustEdit.finish(
                subject, write, out, method=CARD.name, config={**config.model_dump(mode="json"), "neurons": counts}
            )
            cost.items = min(config.samples, len(request.forget)) + min(config.samples, len(request.retain))
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], [{"neurons": float(sum(counts.values()))}])


METHOD = NeuronAdjust()
