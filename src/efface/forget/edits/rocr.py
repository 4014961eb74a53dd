"""ROCR: redirect what a name activates to another name by one closed-form change of MLP weights, without training.

Paper: Ye, Zhang, Wu, LLM Unlearning Should Be Form-Independent, arXiv 2506.07795 (2025); the solve is AlphaEdit's (arXiv
2410.02355). For layers l_1..l_n, W_l [d, h] the down-projection, k_l [h] its input at the last token of the name s (mean
over templates), z* [d] the output of layer l_n at the last token of the redirect name, and P_l the projector on the
directions that ordinary text does not use:

    r = (z* - z_now) / (n - i),   Delta^T = (P (K K^T + C) + lambda I)^-1 P K R^T,   W += Delta

K [h, S] and R [d, S] hold the S names as columns; C sums K K^T of names edited before. One name gives rank one.
Departures and why: z* and z_now are read in the same template (`published_offsets` reads z_now on the bare name as the
official code does, which puts the template's own offset into the residual); the projector's statistics come from the
retain set of the request and are made anew for each fit, so none is ever used for another model; the solve is in float64
and of the size of S, which is the same by the push-through identity; trailing answer cues are left out, because no causal
model sees them at the name. The edit plants false statements about s, and the facts stay in the weights for a white box.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, InputError, RequestError
from efface.forget.edit import WeightEdit
from efface.forget.edits.steering import SteeringConfig, steer
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Site, at_positions, layers_of, recorded, value_matrix
from efface.subjects.prompts import pad
from efface.subjects.spans import Located, locate, same_last_token
from efface.train.scopes import layer_indices
from efface.train.snapshot import Snapshot

CARD = Card(
    name="rocr",
    system="rocr",
    title="ROCR: rank-one concept redirection",
    summary="Redirects the activation of a name to another name in the MLPs of a few layers; seconds, no training. What is "
    "said about the name becomes what holds for the other one, in every form of question.",
    paper="Ye, Zhang, Wu, LLM unlearning should be form-independent, arXiv 2506.07795 (2025)",
    verb="forget",
    mechanism="edits",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("concepts", "retain"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_subset",
        sequential_ok=False, threat_model="API user",
    ),
    defaults_source="official code, Llama-3-8B-Instruct: layers 4 to 6, lambda 1, null threshold 2e-2, redirect by the "
    "last token; sequential_ok is no, since names of separate runs do not protect each other",
)  # fmt: skip

TEMPLATES = (
    "{subject}.", "Answer the question: {subject}.", "Choose the best answer: {subject}.", "Write the answer: {subject}.",
    "Tell me something about {subject}.", "Write something about {subject}.",
)  # fmt: skip
"""User turns that end in the name and a full stop, of the six kinds that the paper uses."""


class ROCRConfig(SteeringConfig):
    """What is redirected, where and how. The keys of training are not used: nothing is trained."""

    scope: Literal["all", "layers", "lora"] = Field("layers", description="down-projections of layers; no other scope")
    layers: str | None = Field(None, description="consecutive layers; default: those at the depth of 4-6 of 32 (code)")
    mode: Literal["unrelated", "reject", "noise"] = Field("unrelated", description="target of the redirection (code)")
    redirect: str | None = Field(None, description="redirect name of concepts that have no replacement of their own")
    templates: tuple[str, ...] = Field(TEMPLATES, description="contexts with {subject} over which keys are averaged")
    ridge: float = Field(1.0, gt=0, description="lambda; official code: 1")
    projector: Literal["absolute", "relative", "none"] = Field(
        "absolute", description="null space by eigenvalue, or by its share of the largest; code: absolute"
    )
    null_threshold: float = Field(2e-2, gt=0, description="eigenvalues of E[k k^T] below it are null; code: 2e-2")
    sequential: bool = Field(False, description="names one after another, each protecting the former; else stacked")
    published_offsets: bool = Field(False, description="read z_now on the bare '{subject}.', as the official code does")

    @field_validator("scope")
    @classmethod
    def _layers_only(cls, value: str) -> str:
        if value != "layers":
            raise ValueError("rocr changes down-projections: scope=layers")
        return value

    @field_validator("templates")
    @classmethod
    def _with_subject(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or any("{subject}" not in text for text in value):
            raise ValueError("one template or more, each with {subject}")
        return value


class NullSpace(NamedTuple):
    """A projector [h, h] on the directions below the threshold, its rank, and the eigenvalues [h], rising."""

    projector: Tensor
    rank: int
    values: Tensor


def null_space(second_moment: Tensor, threshold: float, *, relative: bool = False) -> NullSpace:
    """P = U_0 U_0^T of the eigenvectors of E[k k^T] [h, h] whose eigenvalue is below the threshold, in float64.

    Args:
        relative: the threshold is a share of the largest eigenvalue.

    Raises:
        CheckFailed: no direction is below it: every redirection would be nothing.
    """
    values, vectors = torch.linalg.eigh(second_moment.double())
    bound = threshold * float(values[-1]) if relative else threshold
    null = vectors[:, values < bound]
    if null.shape[1] == 0:
        raise CheckFailed(
            f"no direction of {len(values)} is null at {'relative' if relative else 'absolute'} threshold {threshold:g} "
            f"(smallest eigenvalue {float(values[0]):.3g}, largest {float(values[-1]):.3g}): the edit would be zero; raise "
            "null_threshold, or set projector=relative or none"
        )
    return NullSpace(null @ null.T, null.shape[1], values)


def redirection(
    keys: Tensor, residuals: Tensor, *, ridge: float, projector: Tensor | None = None, former: Tensor | None = None
) -> Tensor:
    """Delta [d, h] of the module's equation, in float64.

    With B = P M and M = [K, former], (B M^T + lambda I)^-1 B = B (M^T B + lambda I)^-1, so the system solved is as small as
    the number of names.

    Args:
        keys: K [h, S].
        residuals: R [d, S].
        projector: P [h, h]; None is the identity.
        former: [h, F] keys of names edited before; C = former former^T.

    Raises:
        InputError: shapes that do not fit.
    """
    if keys.ndim != 2 or residuals.ndim != 2 or keys.shape[1] != residuals.shape[1]:
        raise InputError(f"keys {list(keys.shape)} and residuals {list(residuals.shape)}", "[h, S] and [d, S]")
    k, r = keys.double(), residuals.double()
    m = k if former is None else torch.cat([k, former.double()], dim=1)
    b = m if projector is None else projector.double() @ m
    small = m.T @ b + ridge * torch.eye(m.shape[1], dtype=torch.float64, device=m.device)
    chosen = torch.linalg.solve(small, torch.eye(m.shape[1], dtype=torch.float64, device=m.device)[:, : k.shape[1]])
    delta: Tensor = r @ (b @ chosen).T
    return delta


def default_layers(depth: int) -> list[int]:
    """Layers 4 to 6 of 32, at the same relative depth in any model."""
    return list(range(round(depth * 4 / 32), round(depth * 6 / 32) + 1))


def place(subject: CausalLM, template: str, name: str) -> Located:
    """The name in a template in the subject's prompt format."""
    text = subject.prompt.prompt_text(subject.tokenizer, template.replace("{subject}", name))
    return locate(subject.tokenizer, text, name, special=subject.prompt.style == "plain")


def states_at(subject: CausalLM, places: Sequence[Located], site: Site) -> Tensor:
    """[N, D] float64: what flows through a site at the last token of each place."""
    batch = pad([found.ids for found in places], subject.pad_id, side="right")
    batch = {name: tensor.to(subject.device) for name, tensor in batch.items()}
    with subject.evaluating() as model, recorded(model, [site]) as found:
        model(**batch, use_cache=False)
        return at_positions(found[site], torch.tensor([where.last for where in places])).double()


def key_moment(subject: CausalLM, layer: int, rows: Sequence[Sequence[int]], *, batch_size: int = 32) -> Tensor:
    """E[k k^T] [h, h] in float64 over all tokens of the rows."""
    total, count, site = None, 0, Site("keys", layer)
    with subject.evaluating() as model, recorded(model, [site]) as found:
        for start in range(0, len(rows), batch_size):
            batch = pad(rows[start : start + batch_size], subject.pad_id, side="right")
            batch = {name: tensor.to(subject.device) for name, tensor in batch.items()}
            model(**batch, use_cache=False)
            k = found[site][batch["attention_mask"].bool()].double()  # [tokens, h]
            total = k.T @ k if total is None else total + k.T @ k
            count += len(k)
    assert total is not None
    return total / count


class ROCR(Method):
    """See the module."""

    card = CARD
    config_class = ROCRConfig

    def check(self, request: Request, config: FitConfig) -> None:
        """Concepts, a redirect name for each, and a retain set for the projector.

        Raises:
            RequestError: what is missing.
        """
        assert isinstance(config, ROCRConfig)
        if config.projector != "none" and request.retain is None:
            raise RequestError(
                "rocr without a retain set", "ordinary rows, from which the null space is taken",
                "give them with --retain, or set projector=none",
            )  # fmt: skip
        if not request.concepts:
            raise RequestError("rocr without concepts", "names to redirect", "put them into the request's concepts")
        for name, replacement in request.concepts.items():
            other = replacement or config.redirect
            if config.mode == "unrelated" and not other:
                raise RequestError(
                    f"concept '{name}' has no replacement", "the name to redirect to", "set redirect=..."
                )
            if config.mode == "unrelated" and other and other.strip() == name.strip():
                raise RequestError(f"concept '{name}' is redirected to itself", "another name")

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError: see `check`; a name is not in its template.
            ConfigError: layers that are out of range or not consecutive.
            CheckFailed: the null space is empty.
        """
        assert isinstance(config, ROCRConfig)
        self.check(request, config)
        base, layers = subject.digest, self._layers(subject, config)
        names = list(request.concepts)
        make_folder(work)
        with measure_cost(f"fit {CARD.name}") as cost:
            spaces = self._null_spaces(subject, request, config, layers)
            targets = self._targets(subject, request, config, layers[-1])
            matrices = {f"layer {layer}": value_matrix(subject.model, layer) for layer in layers}
            live = self._live(subject, matrices)
            log: list[dict[str, float]] = []
            with Snapshot(live, work / "base.safetensors") as snapshot:
                groups = [[name] for name in names] if config.sequential else [names]
                former: dict[int, Tensor] = {}
                for group in groups:
                    z = torch.stack([targets[name] for name in group])
                    log += self._edit(subject, group, z, config, layers, spaces, former)
                edit = WeightEdit.harvest(
                    subject, snapshot, out, base_digest=base, method=CARD.name, claim=str(CARD.claims),
                    config={
                        **config.model_dump(mode="json"), "layers_chosen": layers, "names": len(names),
                        "null_rank": {str(layer): space.rank for layer, space in spaces.items()},
                        "shared_last_tokens": sum(bool(same_last_token(subject.tokenizer, n, names)) for n in names),
                    },
                )  # fmt: skip
            cost.items = len(names)
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], log)

    @staticmethod
    def _layers(subject: CausalLM, config: ROCRConfig) -> list[int]:
        depth = len(layers_of(subject.model))
        layers = default_layers(depth) if config.layers is None else sorted(layer_indices(config.layers, depth))
        if layers != list(range(layers[0], layers[-1] + 1)):
            raise ConfigError(
                f"layers='{config.layers}'", "consecutive layers", "the residual is shared out along them"
            )
        return layers

    @staticmethod
    def _live(subject: CausalLM, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parameters behind the matrices, by their names in the model."""
        own = {tensor.data_ptr() for tensor in matrices.values()}
        return {name: p for name, p in subject.weights().items() if p.data_ptr() in own}

    @staticmethod
    def _null_spaces(
        subject: CausalLM, request: Request, config: ROCRConfig, layers: list[int]
    ) -> dict[int, NullSpace]:
        if config.projector == "none" or request.retain is None:
            return {}
        rows = [row.ids for row in subject.encode_rows(request.retain, name="retain")]
        found = {}
        for layer in layers:
            space = null_space(
                key_moment(subject, layer, rows), config.null_threshold, relative=config.projector == "relative"
            )
            if space.rank == len(space.values):
                warnings.warn(
                    f"every direction of layer {layer} is null at threshold {config.null_threshold:g}: the projector "
                    "protects nothing; lower null_threshold or set projector=relative", UserWarning, stacklevel=2,
                )  # fmt: skip
            found[layer] = space
        return found

    @staticmethod
    def _targets(subject: CausalLM, request: Request, config: ROCRConfig, last: int) -> dict[str, Tensor]:
        """z* [d] of every name, in the unedited model, at the first template."""
        found: dict[str, Tensor] = {}
        for index, (name, replacement) in enumerate(request.concepts.items()):
            if config.mode == "unrelated":
                other = str(replacement or config.redirect)
                where = place(subject, config.templates[0], other)
                found[name] = states_at(subject, [where], Site("residual", last))[0]
                continue
            where = place(subject, config.templates[0], name)
            prior = place(subject, "{subject} is a", name)
            found[name] = steer(subject, where, prior, last, config, index=index)
        return found

    @staticmethod
    def _edit(
        subject: CausalLM, names: list[str], targets: Tensor, config: ROCRConfig, layers: list[int],
        spaces: dict[int, NullSpace], former: dict[int, Tensor],
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Edit the live layers for a group of names; `former` grows by their keys."""
        contexts = [[place(subject, template, name) for template in config.templates] for name in names]
        now_at = [place(subject, "{subject}.", name) for name in names] if config.published_offsets else None
        if now_at is not None:
            now_at = [
                locate(subject.tokenizer, f"{name.strip()}.", name, special=subject.prompt.style == "plain")
                for name in names
            ]
        steps = []
        for i, layer in enumerate(layers):
            z = states_at(subject, now_at or [group[0] for group in contexts], Site("residual", layers[-1]))
            r = (targets - z) / (len(layers) - i)  # [S, d]
            k = torch.stack([states_at(subject, group, Site("keys", layer)).mean(0) for group in contexts])  # [S, h]
            space = spaces.get(layer)
            delta = redirection(
                k.T, r.T, ridge=config.ridge, projector=None if space is None else space.projector,
                former=former.get(layer),
            )  # fmt: skip
            weight = value_matrix(subject.model, layer)
            with torch.no_grad():
                weight.copy_((weight.double() + delta).to(weight.dtype))
            former[layer] = k.T if layer not in former else torch.cat([former[layer], k.T], dim=1)
            steps.append({
                "layer": layer, "names": len(names), "residual": float(r.norm()), "delta": float(delta.norm()),
                "null_rank": -1 if space is None else space.rank,
            })  # fmt: skip
        return steps


METHOD = ROCR()
