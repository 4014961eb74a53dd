"""A state that makes the model begin its reply in a given way: the target of ROCR's modes `reject` and `noise`.

After ROME's search for a value (Meng et al., arXiv 2202.05262, equation 4): a vector added to the residual stream at the
name's last token is optimised by Adam until the reply begins with a refusal, held by a KL term on what the model says after
"{name} is a" and by a decay relative to the state's norm. Settings are those of ROCR's code (arXiv 2506.07795).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.forget.method import FitConfig
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Change, Site, at_positions, recorded, replaced
from efface.subjects.spans import Located


class SteeringConfig(FitConfig):
    """The search for a target state."""

    mode: str = Field("reject", description="reject: the state found; noise: a random one of the same norm")
    opening: str = Field("Unfortunately", description="mode=reject: how the reply is to begin (code)")
    steer_steps: int = Field(25, ge=1, description="mode=reject, noise: Adam steps (code: 25)")
    steer_rate: float = Field(0.1, gt=0, description="mode=reject, noise: Adam's learning rate (code: 0.1)")
    kl_factor: float = Field(0.125, ge=0, description="weight of the KL term (code: 0.125)")
    decay: float = Field(0.5, ge=0, description="weight of |v| / |z|^2 (code: 0.5)")
    clamp: float = Field(1.0, gt=0, description="largest |v| as a multiple of |z| (code: 1)")
    stop_loss: float = Field(0.05, gt=0, description="stop below this loss (code: 0.05)")


def steering_loss(nll: Tensor, kl: Tensor, vector: Tensor, norm: float, config: SteeringConfig) -> Tensor:
    """nll + kl_factor * kl + decay * |v| / |z|^2; a scalar.

    Args:
        nll: mean negative log-probability of the opening's tokens.
        kl: KL(before || now) of the next token after "{name} is a".
        vector: v [d].
        norm: |z| of the state that v is added to.
    """
    loss: Tensor = nll + config.kl_factor * kl + config.decay * vector.norm() / norm**2
    return loss


def _adding(vector: Tensor, position: int) -> Change:
    def change(states: Tensor) -> Tensor:
        states[:, position] = states[:, position] + vector.to(states.dtype)
        return states

    return change


def steer(
    subject: CausalLM, where: Located, prior: Located, layer: int, config: SteeringConfig, *, index: int = 0
) -> Tensor:
    """The target state [d], float64, at the name's last token after `layer`.

    Args:
        where: the name in its template; the reply begins after it.
        prior: the name in "{name} is a", for the KL term.
        index: of the name, so that each has noise of its own from the one seed.
    """
    site = Site("residual", layer)
    opening = list(subject.tokenizer(" " + config.opening, add_special_tokens=False)["input_ids"])
    whole = torch.tensor([[*where.ids, *opening]], device=subject.device)
    short = torch.tensor([prior.ids], device=subject.device)
    start = len(where.ids) - 1
    with subject.evaluating() as model, recorded(model, [site]) as found:
        model(input_ids=whole, use_cache=False)
        z = at_positions(found[site], torch.tensor([where.last]))[0].float()
        before = model(input_ids=short, use_cache=False).logits[0, -1].float().log_softmax(-1)
    norm = float(z.norm())
    vector = torch.zeros_like(z, requires_grad=True)
    optimiser = torch.optim.Adam([vector], lr=config.steer_rate)
    flags = [(p, p.requires_grad) for p in subject.model.parameters()]
    mode = subject.model.training
    subject.model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        for _ in range(config.steer_steps):
            with replaced(subject.model, {site: _adding(vector, where.last)}):
                logp = subject.model(input_ids=whole, use_cache=False).logits[0].float().log_softmax(-1)
            nll = -logp[start : start + len(opening)].gather(1, whole[0, start + 1 :, None]).mean()
            with replaced(subject.model, {site: _adding(vector, prior.last)}):
                now = subject.model(input_ids=short, use_cache=False).logits[0, -1].float().log_softmax(-1)
            kl = (before.exp() * (before - now)).sum()
            loss = steering_loss(nll, kl, vector, norm, config)
            if float(loss.detach()) < config.stop_loss:
                break
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                vector.mul_(min(1.0, config.clamp * norm / max(float(vector.norm()), 1e-12)))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        subject.model.train(mode)
    target: Tensor = (z + vector.detach()).double()
    if config.mode == "noise":
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
        noise = torch.randn(target.shape, generator=generator, dtype=torch.float64).to(target.device)
        target = noise * (target.norm() / noise.norm())
    return target
