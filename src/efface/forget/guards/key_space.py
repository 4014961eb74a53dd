"""Key Space Detection: a prompt whose key falls into the forget skill's box is not answered.

Paper: Li et al., Effective Skill Unlearning through Intervention and Abstention, arXiv 2503.21730 (NAACL 2025). A key is what
an MLP's down-projection reads, v in R^h, at the last token of a prompt. With mu, sigma over the keys of the forget prompts,

    s(v) = max_j |v_j - mu_j| / sigma_j,    k* = max_i s(v_i),    abstain iff s(v) < alpha k*

Abstaining is a fixed refusal as the whole answer, or (`respond=steer`) the key replaced by the mean key at the end of that
refusal.

Departures from the official code, and why: alpha is calibrated on keys of the retain prompts, which the box is not made of,
so that at most `false_alarms` of their like are stopped (there, one default leaves almost no box), and it is never above
`widest`; the box may hold a share of the forget keys (`coverage`), so that one outlier does not inflate k*; sigma is at
least a share of its median, or a dead neuron would reject everything; the last token that is no padding is tested, in
every row of a batch, at the end of the prompt (there, item 0 at every step, remembered in a global; `every_step` is that
without the global). A guard fitted in one prompt format refuses another: keys depend on it. Nothing is removed, the box can
be read off, and words in front of or behind a question move its key.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, InputError, RequestError, RunError
from efface.forget.guards.abstention import NEVER, Abstention, prompt_ends
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.numerics.conformal import upper_quantile
from efface.run.cost import measure_cost
from efface.run.digests import digest_value
from efface.run.files import storage
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, GuardedModel, Pass
from efface.subjects.hooks import Site, layers_of, replaced
from efface.subjects.neuron_statistics import prompt_keys, some
from efface.train.scopes import layer_indices

CARD = Card(
    name="key-space",
    system="skill-unlearning",
    title="Key Space Detection",
    summary="Knows the forget skill by where its prompts lie in the key space of one MLP, and refuses to answer inside that box. "
    "No training, no weight changes; the refusal rate on what is kept is calibrated.",
    paper="Li et al., Effective skill unlearning through intervention and abstention, arXiv 2503.21730 (NAACL 2025)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="output_filter", survey_class="filter", level="output", threat_model="API user",
    ),
    defaults_source="paper: keys of the last layer, 200 probing rows, alpha 2 (here the widest); the rate of false alarms and "
    "the floor of sigma are efface's own",
)  # fmt: skip


class KeySpaceConfig(FitConfig):
    """The box, how wide it is, and what is said inside it. The keys of training are not used: nothing is trained."""

    layer: int = Field(-1, description="whose keys are tested; negative counts from the end; paper: the last")
    alpha: float | None = Field(
        None,
        gt=0,
        description="width of the box in units of k*; default: calibrated (paper: 2 for GSM8K, 1.4 for MBPP)",
    )
    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="share of prompts to keep that may be stopped (efface's own)"
    )
    widest: float = Field(2.0, gt=0, description="no calibrated alpha is above it; the paper's largest: 2")
    coverage: float = Field(1.0, gt=0, le=1, description="share of the forget keys in the box at alpha 1; paper: all")
    sigma_floor: float = Field(0.1, ge=0, description="sigma is at least this share of its median (efface's own)")
    samples: int = Field(200, ge=2, description="forget prompts that make the box, at most; paper: 200")
    respond: Literal["refuse", "steer"] = Field("refuse", description="a fixed refusal, or the key of one")
    refusal: str = Field(REFUSALS[0], min_length=1, description="what is said instead of an answer")
    every_step: bool = Field(
        False, description="test generated tokens too, and refuse from the first hit on (the code)"
    )


class Box(NamedTuple):
    """mu [h], sigma [h] (floored), and k* in units of sigma."""

    centre: Tensor
    scale: Tensor
    k: float

    def distances(self, keys: Tensor) -> Tensor:
        """[..., h] -> [...] float32: s(v) / k*; the box is what lies below alpha."""
        centre, scale = self.centre.to(keys.device), self.scale.to(keys.device)
        return ((keys.float() - centre).abs() / scale).amax(-1) / self.k


def key_box(keys: Tensor, *, coverage: float = 1.0, sigma_floor: float = 0.1) -> Box:
    """The smallest box round the mean, in units of each dimension's sigma, that holds a share of the keys.

    Args:
        keys: [n, h] of the forget prompts.
        coverage: share of the keys inside.
        sigma_floor: sigma is at least this share of the median sigma.

    Raises:
        InputError: fewer than two keys, keys that are all alike, or values that are not finite.
    """
    if keys.ndim != 2 or len(keys) < 2 or not bool(torch.isfinite(keys).all()):
        raise InputError(
            f"keys of shape {list(keys.shape)}", "[n, h] finite numbers, two or more", "give more forget rows"
        )
    x = keys.double()
    centre, sigma = x.mean(0), x.std(0, unbiased=False)
    if not float(sigma.max()) > 0:
        raise InputError(f"{len(keys)} keys that are all alike", "different prompts", "give forget rows that differ")
    scale = sigma.clamp_min(sigma_floor * float(sigma.median())).clamp_min(1e-6 * float(sigma.max()))
    furthest = ((x - centre).abs() / scale).amax(1).sort().values  # [n]
    k = float(furthest[max(0, math.ceil(coverage * len(x) - 1e-9) - 1)])
    if not k > 0:
        raise InputError(f"coverage={coverage:g} of {len(x)} keys leaves a box without width", "more", "raise coverage")
    return Box(centre.float(), scale.float(), k)


def calibrated_alpha(distances: Tensor, rate: float, widest: float) -> float:
    """The widest alpha at which a prompt like those to keep is stopped with probability at most `rate`.

    Args:
        distances: [n] `Box.distances` of prompts to keep, none of which made the box.

    Raises:
        InputError: too few prompts for the rate.
    """
    return min(widest, -upper_quantile(-distances.numpy(), rate))


class KeySpaceModel(GuardedModel):
    """A model that abstains inside a box.

    Args:
        site: where the keys are.
        box, alpha: as above.
        abstention: the refusal.
        steering: [h] the key to put in place of a stopped one; None: refuse.
        every_step: test the tokens behind the prompt too.
    """

    def __init__(
        self, base: Any, site: Site, box: Box, alpha: float, abstention: Abstention, *, steering: Tensor | None = None,
        every_step: bool = False, seal: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base, seal)
        self.site, self.box, self.alpha = site, box, alpha
        self.abstention, self.steering, self.every_step = abstention, steering, every_step

    def begin(self, asked: Asked) -> None:
        """Where each prompt ends; no row is stopped yet."""
        asked.memory["ends"] = prompt_ends(asked)
        asked.memory["since"] = torch.full_like(asked.memory["ends"], NEVER)

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        settings = more.get("generation_config") or self.generation_config
        if self.every_step and (more.get("num_beams") or getattr(settings, "num_beams", 1) or 1) > 1:
            raise ConfigError("beam search with every_step", "greedy search or sampling", "set num_beams=1")
        return super()._generate(asked, ids, more)

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        """Test the keys of this pass; with a steering key, put it where a row is stopped."""

        def change(keys: Tensor) -> Tensor:
            memory, batch = now.asked.memory, len(keys)
            place = torch.arange(now.start, now.start + keys.shape[1], device=keys.device)  # [T']
            ends = now.asked.rows(memory["ends"], batch).to(keys.device)[:, None]
            # [B', T']; padding behind an answer may be hit too, and no answer comes after it
            tested = place >= ends if self.every_step else place == ends
            hit = tested & (self.box.distances(keys) < self.alpha)
            first = torch.where(hit, place, NEVER).amin(1)
            memory["since"] = torch.minimum(now.asked.rows(memory["since"], batch).to(keys.device), first)
            if self.steering is None:
                return keys
            stopped = place >= memory["since"][:, None]
            return torch.where(stopped[..., None], self.steering.to(keys), keys)

        with replaced(self.base, {self.site: change}):
            yield

    def correct(self, now: Pass, output: Any) -> Any:
        """The refusal in the rows that are stopped."""
        return output if self.steering is not None else self.abstention.correct(now, output, now.asked.memory["since"])


class KeySpaceEdit(GuardEdit):
    """`box.safetensors`: the box, the refusal's tokens, and the steering key where there is one."""

    kind = "key-space"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> KeySpaceModel:
        if digest_value(subject.prompt.model_dump()) != config["prompt_format"]:
            raise RunError(
                "the model asks in another prompt format than the one that this guard was fitted in",
                "the same format: keys depend on every token before the question",
                "load the model with it, or fit the guard again",
            )  # fmt: skip
        found = load_file(folder / "box.safetensors")
        box = Box(found["centre"], found["scale"], float(config["k"]))
        return KeySpaceModel(
            subject.model, Site("keys", int(config["layer_chosen"])), box, float(config["alpha_chosen"]),
            Abstention(found["refusal"]), steering=found.get("steering"), every_step=bool(config["every_step"]), seal=seal,
        )  # fmt: skip


class KeySpace(Method):
    """See the module."""

    card = CARD
    config_class = KeySpaceConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Make the box of the forget prompts and calibrate it on the retain prompts; see `Method.fit`.

        Raises:
            RequestError: no retain set, or rows without a question.
            InputError: fewer than two forget rows, or too few retain rows for `false_alarms`.
            ConfigError: no such layer.
        """
        assert isinstance(config, KeySpaceConfig)
        self.check(request, config)
        if request.retain is None:
            raise RequestError("key-space without a retain set", "rows to keep", "give them with --retain")
        layer = layer_indices(str(config.layer), len(layers_of(subject.model))).pop()
        site, size = Site("keys", layer), config.micro_batch_size or config.batch_size
        abstention = Abstention.of(subject, config.refusal)
        with measure_cost(f"fit {CARD.name}") as cost:
            probes = request.forget.select(some(len(request.forget), config.samples, config.seed))
            prompts = subject.encode_prompts(probes, name="forget")
            probed = prompt_keys(subject, prompts, site, batch_size=size)
            box = key_box(probed, coverage=config.coverage, sigma_floor=config.sigma_floor)
            kept = subject.encode_prompts(request.retain, name="retain")
            distances = box.distances(prompt_keys(subject, kept, site, batch_size=size))  # [n]
            alpha = config.alpha
            if alpha is None:
                alpha = calibrated_alpha(distances, config.false_alarms, config.widest)
            tensors = {"centre": box.centre, "scale": box.scale, "refusal": abstention.tokens}
            if config.respond == "steer":
                spoken = [[*prompt, *abstention.tokens[:-1].tolist()] for prompt in prompts]
                tensors["steering"] = prompt_keys(subject, spoken, site, batch_size=size).mean(0)

            def write(folder: Path) -> None:
                with storage(folder):
                    save_file(tensors, folder / "box.safetensors")

            inside = [float((s < alpha).float().mean()) for s in (box.distances(probed), distances)]
            facts = {
                "layer_chosen": layer,
                "k": box.k,
                "alpha_chosen": alpha,
                "forget_stopped": inside[0],
                "retain_stopped": inside[1],
            }
            edit = KeySpaceEdit.finish(
                subject, write, out, method=CARD.name,
                config={
                    **config.model_dump(mode="json"), **facts,
                    "prompt_format": digest_value(subject.prompt.model_dump()),
                },
            )  # fmt: skip
            cost.items, cost.tokens = len(prompts) + len(kept), sum(map(len, [*prompts, *kept]))
        shutil.rmtree(work, ignore_errors=True)
        if inside[0] < 0.5:
            warnings.warn(
                f"key-space: the box stops {inside[0]:.0%} of the forget prompts that made it: at layer {layer} they lie among "
                "those to keep; try another layer, or allow more false_alarms", stacklevel=2,
            )  # fmt: skip
        return Fitted(edit, [cost], [{key: float(value) for key, value in facts.items()}])


METHOD = KeySpace()
