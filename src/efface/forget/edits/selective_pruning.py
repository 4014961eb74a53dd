"""Selective pruning: the MLP neurons that matter most to the forget rows, relative to the retain rows, are cut off.

Paper: Pochinkov and Schoots, Dissecting Language Models: Machine Unlearning via Selective Pruning, arXiv 2403.01267 (2024); the
baseline of Effective Skill Unlearning (arXiv 2503.21730), whose score it has here: for neuron j with key k_j (what the
down-projection reads),

    score_j = mean |k_j| on forget / (mean |k_j| on retain + 1e-8)

The `share` of the neurons of all layers together with the largest scores are cut: their columns of the down-projection
become zero. Departure: the original paper has further scores and prunes in steps with the scores taken anew; this is one
step of its absolute-value score.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ModelError, RequestError
from efface.forget.edits.one_shot import Change, OneShotConfig, Own, edit_once, movable
from efface.forget.guards.neuron_adjust import chosen_neurons
from efface.forget.method import FitConfig, Fitted, Method
from efface.numerics.running_variance import RunningVariance
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Site, layers_of, value_matrix
from efface.subjects.neuron_statistics import Tokens, neuron_statistics, some
from efface.train.scopes import layer_indices

CARD = Card(
    name="selective-pruning",
    system="skill-unlearning",
    title="Selective pruning",
    summary="Cuts off the MLP neurons that are most active on what is to be forgotten, relative to what is kept. One pass over "
    "each set, no training; the baseline of Neuron Adjust.",
    paper="Pochinkov and Schoots, Dissecting language models: machine unlearning via selective pruning, arXiv 2403.01267 (2024)",
    verb="forget",
    mechanism="edits",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="API user",
    ),
    defaults_source="Effective Skill Unlearning (arXiv 2503.21730): 3 %, 200 probing rows a set",
)  # fmt: skip

EPSILON = 1e-8


class SelectivePruningConfig(OneShotConfig):
    """How many neurons are cut, and what they are measured on."""

    share: float = Field(0.03, gt=0, lt=1, description="share of the neurons; arXiv 2503.21730: 0.03")
    samples: int = Field(200, ge=1, description="probing rows of each set, at most; arXiv 2503.21730: 200")
    tokens: Tokens = Field("all", description="tokens that are measured: of whole rows, of prompts, or of answers")


def pruning_scores(forget: RunningVariance, retain: RunningVariance) -> Tensor:
    """[h] of statistics of |k|."""
    return forget.mean / (retain.mean + EPSILON)


class SelectivePruning(Method):
    """See the module."""

    card = CARD
    config_class = SelectivePruningConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Score and cut; see `Method.fit`.

        Raises:
            RequestError: no retain set.
            ModelError: a down-projection without a matrix of its own (quantised, or an unknown architecture).
        """
        assert isinstance(config, SelectivePruningConfig)
        self.check(request, config)
        if request.retain is None:
            raise RequestError("selective-pruning without a retain set", "rows to keep", "give them with --retain")
        own = movable(subject, config, CARD.name)
        depth = len(layers_of(subject.model))
        layers = range(depth) if config.layers is None else sorted(layer_indices(config.layers, depth))
        names = {layer: _name_of(own, value_matrix(subject.model, layer)) for layer in layers}
        rows = [
            subject.encode_rows(data.select(some(len(data), config.samples, config.seed)), name=name)
            for name, data in (("forget", request.forget), ("retain", request.retain))
        ]

        def change() -> Change:
            sites = [Site("keys", layer) for layer in layers]
            forget, retain = (
                neuron_statistics(
                    subject, part, sites, tokens=config.tokens, change=torch.abs,
                    batch_size=config.micro_batch_size or config.batch_size,
                ) for part in rows
            )  # fmt: skip
            chosen = chosen_neurons({s.layer: pruning_scores(forget[s], retain[s]) for s in sites}, config.share)
            notes = {"neurons": {str(layer): len(index) for layer, index in chosen.items()}}
            return Change(_cut(subject, own, names, chosen), notes, sum(map(len, rows)))

        return edit_once(self, subject, config, own, change, work=work, out=out)


def _cut(subject: CausalLM, own: Own, names: dict[int, str], chosen: dict[int, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Down-projections without the columns of the chosen neurons."""
    for layer, index in chosen.items():
        parameter, matrix = own[names[layer]], value_matrix(subject.model, layer)
        value = parameter.detach().clone()
        turned = value if matrix.shape == parameter.shape and matrix.stride() == parameter.stride() else value.T
        turned[:, index.to(value.device)] = 0
        yield names[layer], value


def _name_of(own: Own, matrix: Tensor) -> str:
    """The parameter that a value matrix is a view of.

    Raises:
        ModelError: it is frozen, outside the scope, or no parameter.
    """
    for name, parameter in own.items():
        if parameter.data_ptr() == matrix.data_ptr():
            return name
    raise ModelError(
        "a down-projection that may not move", "weights that require gradients", "thaw it, or widen the scope"
    )


METHOD = SelectivePruning()
