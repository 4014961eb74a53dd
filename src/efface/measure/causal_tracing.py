"""Causal tracing: which states carry a fact, from runs in which the subject is noised and one state is put back.

After Meng et al., arXiv 2202.05262, section 2, in the form used by arXiv 2504.12996 (Selective Amnesia): p_clean of the
answer's first token; p_corr when the embeddings of the subject's tokens get Gaussian noise of `sigmas` standard deviations
(of the subject-token embeddings over all subjects, all entries together); p_{t,l} when, besides, the clean state at token t
after layer l is put back. The indirect effect is p_{t,l} - p_corr. For MLP or attention outputs a window of layers around l
is put back. The same noisy copies serve every restoration of a fact. Facts that the model does not answer are left out.

Departures: a window near the ends covers fewer layers, and `Trace.covered` says how many; noise is drawn for each fact from
the seed and the fact's place, so that a fact's figures do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efface.errors import ConfigError, RequestError
from efface.run.progress import track
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Change, Site, layers_of, recorded, replaced
from efface.subjects.spans import Located, locate

Floats = npt.NDArray[np.float64]
Kind = Literal["residual", "mlp", "attention"]
Role = Literal["before", "subject first", "subject middle", "subject last", "after", "last"]
ROLES: tuple[Role, ...] = ("before", "subject first", "subject middle", "subject last", "after", "last")


class Fact(NamedTuple):
    """A prompt, the subject as it is written there, and the answer that follows."""

    prompt: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Traced:
    """One fact; T tokens of the prompt.

    Attributes:
        where: the prompt's ids and the subject's place.
        answer: id of the answer's first token.
        clean, corrupted: probability of it in the two runs (corrupted: mean over the copies).
        restored: kind -> [L, T] mean probability after restoration; for `residual` [L + 1, T], the first row being the
            embedding.
    """

    where: Located
    answer: int
    clean: float
    corrupted: float
    restored: dict[str, Floats] = field(default_factory=dict)

    def effect(self, kind: Kind) -> Floats:
        """Indirect effects p_{t,l} - p_corr, of the shape of `restored`."""
        return self.restored[kind] - self.corrupted


@dataclass(frozen=True)
class Trace:
    """All facts.

    Attributes:
        facts: those that the model answers.
        skipped: how many it does not.
        sigma: standard deviation of the noise.
        covered: kind -> [L] layers that a restoration at l puts back (1 everywhere for `residual`, of [L + 1]).
    """

    facts: list[Traced]
    skipped: int
    sigma: float
    covered: dict[str, list[int]]

    def by_role(self, kind: Kind) -> dict[Role, Floats]:
        """Mean probability after restoration by role of the token -> [L] ([L + 1] for `residual`); absent roles left out.

        Tokens of one role in one fact are averaged first, so that every fact that has the role counts once.
        """
        found: dict[Role, Floats] = {}
        for role in ROLES:
            rows = [
                fact.restored[kind][:, places].mean(axis=1)
                for fact in self.facts if (places := positions(fact.where, role))
            ]  # fmt: skip
            if rows:
                found[role] = np.mean(rows, axis=0)
        return found

    @property
    def clean(self) -> float:
        """Mean clean probability."""
        return float(np.mean([fact.clean for fact in self.facts]))

    @property
    def corrupted(self) -> float:
        """Mean corrupted probability."""
        return float(np.mean([fact.corrupted for fact in self.facts]))

    def strongest(self, kind: Kind = "mlp", role: Role = "subject last") -> list[int]:
        """Layers by falling mean effect at a role: where to edit or train, first the best. Ties go to the lower layer."""
        curve = self.by_role(kind)[role]
        return [int(i) for i in np.argsort(-curve, kind="stable")]


def positions(where: Located, role: Role) -> list[int]:
    """The prompt's positions of a role. A one-token subject is its last token; the prompt's last token is only `last`."""
    end = len(where.ids) - 1
    middle = range(where.first + 1, where.last)
    sets: dict[Role, Sequence[int]] = {
        "before": range(where.first),
        "subject first": [where.first] if where.first < where.last else [],
        "subject middle": middle,
        "subject last": [where.last],
        "after": range(where.last + 1, end),
        "last": [end],
    }
    chosen = [i for i in sets[role] if i != end or role == "last"]
    return chosen if role != "last" or end > where.last else []


def window(layer: int, depth: int, width: int) -> range:
    """`width` layers around one, cut at the ends: from l - width // 2 up to before l + width - width // 2."""
    return range(max(0, layer - width // 2), min(depth, layer + width - width // 2))


def locate_fact(subject: CausalLM, fact: Fact, name: str = "fact") -> tuple[Located, int]:
    """The prompt with the subject's place, and the id of the answer's first token.

    Raises:
        RequestError: the subject is not in the prompt, or the answer's first token runs into the prompt's last.
    """
    row = subject.encode(fact.prompt, fact.answer, place=name)
    text = subject.prompt.prompt_text(subject.tokenizer, fact.prompt)
    where = locate(subject.tokenizer, text, fact.subject, special=subject.prompt.style == "plain")
    if row.ids[: row.n_prompt] != where.ids:
        raise RequestError(f"{name}: prompt and answer share a token", "a prompt that ends where a token ends")
    return where, row.ids[row.n_prompt]


def trace(
    subject: CausalLM, facts: Sequence[Fact], *, kinds: Sequence[Kind] = ("residual", "mlp", "attention"),
    sigmas: float = 3.0, copies: int = 10, width: int = 10, seed: int = 0, batch_size: int = 256,
) -> Trace:  # fmt: skip
    """Trace every fact.

    Args:
        kinds: what to put back.
        sigmas: noise in standard deviations of the subject-token embeddings (paper: 3).
        copies: noisy copies of each prompt (paper: 10).
        width: layers of the window for `mlp` and `attention` (paper: 10); 1 puts back the layer alone.
        seed: of the noise.
        batch_size: sequences in one forward pass.

    Raises:
        RequestError: no facts, or none that the model answers.
        ConfigError: no copies, no width, or no noise.
        ModelError: an unknown architecture.
    """
    if not facts:
        raise RequestError("no fact to trace", "one or more")
    if copies < 1 or width < 1 or sigmas <= 0:
        raise ConfigError(f"copies={copies}, width={width}, sigmas={sigmas}", "at least one copy and layer, and noise")
    depth = len(layers_of(subject.model))
    located = [locate_fact(subject, fact, f"fact {i}") for i, fact in enumerate(facts)]
    sigma = sigmas * subject_spread(subject, [where for where, _ in located])
    found, skipped = [], 0
    with track("causal tracing", len(located)) as advance:
        for index, (where, answer) in enumerate(located):
            sequence = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(sequence >> np.uint64(1)))
            size = subject.model.get_input_embeddings().weight.shape[1]
            noise = sigma * torch.randn(copies, len(where.tokens), size, generator=generator)
            one = _trace(subject, where, answer, noise, kinds, width, depth, batch_size)
            skipped += one is None
            found += [] if one is None else [one]
            advance(1)
    if not found:
        raise RequestError(f"none of {len(facts)} facts is answered by the model", "one that it knows", "give others")
    covered: dict[str, list[int]] = {
        kind: [1] * (depth + 1) if kind == "residual" else [len(window(i, depth, width)) for i in range(depth)]
        for kind in kinds
    }
    return Trace(found, skipped, sigma, covered)


def subject_spread(subject: CausalLM, places: Sequence[Located]) -> float:
    """Standard deviation of all entries of the subject tokens' embeddings, over all subjects."""
    ids = torch.tensor([where.ids[i] for where in places for i in where.tokens], device=subject.device)
    with subject.evaluating() as model:
        return float(model.get_input_embeddings()(ids).double().std())


def _trace(
    subject: CausalLM, where: Located, answer: int, noise: Tensor, kinds: Sequence[Kind], width: int, depth: int,
    batch_size: int,
) -> Traced | None:  # fmt: skip
    """One fact; None where the model's first choice is another token."""
    ids = torch.tensor([where.ids], device=subject.device)
    copies, length = len(noise), len(where.ids)
    noise = noise.to(subject.device)
    embedding = Site("embedding")
    sites = [embedding] + [Site(kind, i) for kind in kinds for i in range(depth)]
    with subject.evaluating() as model, recorded(model, sites) as clean:
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        kept = dict(clean)
    if int(logits.argmax()) != answer:
        return None

    def probabilities(restore: Sequence[tuple[int, Sequence[Site]]]) -> Floats:
        """[R] mean probability over the copies; restoration r puts back token t at sites."""
        found = []
        per = max(1, batch_size // copies)
        for start in range(0, len(restore), per):
            chunk = restore[start : start + per]
            changes: dict[Site, Change] = {embedding: _noised(noise, where, len(chunk))}
            by_site: dict[Site, list[tuple[int, int]]] = {}
            for row, (token, places) in enumerate(chunk):
                for site in places:
                    by_site.setdefault(site, []).append((row, token))
            for site, cells in by_site.items():
                put = _put_back(kept[site], cells, copies)
                first = changes.get(site)
                changes[site] = put if first is None else _then(first, put)
            with subject.evaluating() as model, replaced(model, changes):
                out = model(input_ids=ids.expand(len(chunk) * copies, -1), use_cache=False).logits[:, -1].float()
            found.append(out.softmax(-1)[:, answer].view(len(chunk), copies).mean(1).double().cpu().numpy())
        return np.concatenate(found)

    corrupted = float(probabilities([(0, ())])[0])
    restored: dict[str, Floats] = {}
    for kind in kinds:
        if kind == "residual":
            rows: list[list[Site]] = [[embedding], *([Site(kind, i)] for i in range(depth))]
        else:
            rows = [[Site(kind, i) for i in window(layer, depth, width)] for layer in range(depth)]
        flat = [(token, places) for places in rows for token in range(length)]
        restored[kind] = probabilities(flat).reshape(len(rows), length)
    return Traced(where, answer, float(logits.softmax(-1)[answer]), corrupted, restored)


def _noised(noise: Tensor, where: Located, repeats: int) -> Change:
    """Add the noise [C, S, D] to the subject's tokens of [repeats * C, T, D]."""

    def change(states: Tensor) -> Tensor:
        part = slice(where.first, where.last + 1)
        states[:, part] = states[:, part] + noise.repeat(repeats, 1, 1).to(states.dtype)
        return states

    return change


def _put_back(clean: Tensor, cells: Sequence[tuple[int, int]], copies: int) -> Change:
    """Write the clean state [1, T, D] of a token into all copies of a restoration, for (restoration, token) cells."""

    def change(states: Tensor) -> Tensor:
        for row, token in cells:
            states[row * copies : (row + 1) * copies, token] = clean[0, token]
        return states

    return change


def _then(first: Change, second: Change) -> Change:
    return lambda states: second(first(states))


__all__ = ["ROLES", "Fact", "Trace", "Traced", "locate_fact", "positions", "subject_spread", "trace", "window"]
