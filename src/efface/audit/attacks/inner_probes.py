"""Is the answer still inside? Linear probes on every layer, a new output head, and the vocabulary projection.

Readers are fitted on the retain set and tried on the forget set, so what they read there was put there by the original
training (tests T4 to T6 of the unlearning taxonomy, after arXiv 2506.09227). All of it says something only beside the same
reading of a model that never saw the forget set: what can be read from that one can be inferred, and proves nothing.

- answer probe: the first token of the answer from the state at the prompt's last token, by logistic regression. Rows count
  whose first token is also that of two retain rows or more. Its control is fitted on shuffled labels.
- truth probe: does the state at an answer's last token tell the true answer from wrong ones (rows with `perturbed_answer`)?
- new head: every answer token from the last layer's state, by a head fitted afresh on the retain set.
- lens: rank of the first answer token in the vocabulary projection of each layer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor

from efface.subjects.causal_lm import CausalLM
from efface.subjects.lens import final_norm, hidden_states, last_states
from efface.subjects.prompts import Encoded

Floats = npt.NDArray[np.float64]
FEWEST = 8
"""Fewer rows to read, or to fit on, say nothing."""

SEEN = 2
"""Retain rows that must share a class."""


def _reader() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


def fitted(x: Tensor, y: Sequence[int] | npt.NDArray[np.int64]) -> Any:
    """A logistic regression on standardised rows.

    Args:
        x: [N, D].
        y: [N] classes, at least two.
    """
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is nearly fitted reads nearly as well
        return _reader().fit(x.numpy(), np.asarray(y))


def answer_probe(subject: CausalLM, retain: Sequence[Encoded], forget: Sequence[Encoded], seed: int) -> dict[str, Any]:
    """The first answer token from the prompt's last state.

    Returns:
        `rows`: indices of the n forget rows that count; `hits` and `control`: [L + 1][n] 0 or 1; `reason` where it was not
        possible.
    """
    tokens = [[row.ids[row.n_prompt] for row in part] for part in (retain, forget)]
    known = {token for token, count in Counter(tokens[0]).items() if count >= SEEN}
    kept = [i for i, token in enumerate(tokens[0]) if token in known]
    rows = [i for i, token in enumerate(tokens[1]) if token in known]
    if len(rows) < FEWEST or len(kept) < FEWEST or len(known) < 2:
        return {
            "reason": f"{len(rows)} forget rows begin with a token that retain answers begin with; {FEWEST} are needed"
        }
    y, z = np.array([tokens[0][i] for i in kept]), np.array([tokens[1][i] for i in rows])
    x = hidden_states(subject, [retain[i] for i in kept])  # [L + 1, N, D]
    u = hidden_states(subject, [forget[i] for i in rows])
    shuffled = np.random.default_rng(seed).permutation(y)
    found: dict[str, Any] = {"rows": rows, "hits": [], "control": []}
    for layer in range(len(x)):
        for name, labels in (("hits", y), ("control", shuffled)):
            said = fitted(x[layer], labels).predict(u[layer].numpy())
            found[name].append((said == z).astype(int).tolist())
    return found


def _ends(rows: Sequence[Encoded]) -> list[Encoded]:
    """The same rows with everything but the last token as the prompt: the state there is what is read."""
    return [Encoded([*row.ids, row.ids[-1]], len(row.ids)) for row in rows]


def truth_probe(subject: CausalLM, retain: Dataset, forget: Dataset) -> dict[str, Any]:
    """True answers against wrong ones, from the state at the answer's last token.

    Returns:
        `hits`: [L + 1][n] 1 where the true answer has the highest score of a forget row; `chance`: what guessing gives; or
        `reason`.
    """
    if "perturbed_answer" not in forget.column_names or "perturbed_answer" not in retain.column_names:
        return {"reason": "no wrong answers (column perturbed_answer) in both sets"}
    if min(len(retain), len(forget)) < FEWEST:
        return {"reason": f"fewer than {FEWEST} rows"}

    def states(data: Dataset) -> tuple[Tensor, list[int]]:
        encoded, owner = [], []
        for i, row in enumerate(data):
            true = row.get("paraphrased_answer") or row["answer"]  # wrong answers have the paraphrase's form
            for text in (true, *row["perturbed_answer"]):
                encoded.append(subject.encode(row["question"], text, place=f"row {i}"))
                owner.append(i)
        return hidden_states(subject, _ends(encoded)), owner

    x, owner = states(retain)
    true = [int(at == 0 or owner[at] != owner[at - 1]) for at in range(len(owner))]
    u, whose = states(forget)
    sizes = Counter(whose)
    hits = []
    for layer in range(len(x)):
        scores = fitted(x[layer], true).decision_function(u[layer].numpy())
        best: dict[int, list[float]] = {}
        for at, score in zip(whose, scores, strict=True):
            best.setdefault(at, []).append(float(score))
        hits.append([int(max(row[1:]) < row[0]) for row in best.values()])
    return {"hits": hits, "chance": float(np.mean([1 / sizes[i] for i in sizes]))}


def new_head(subject: CausalLM, retain: Sequence[Encoded], forget: Sequence[Encoded]) -> dict[str, Any]:
    """Every answer token from the last layer's state, by a head fitted on the retain set; the body is frozen.

    Returns:
        `shares`: [n] share of each forget row's answer tokens that the new head has on top; or `reason`.
    """

    def positions(rows: Sequence[Encoded]) -> list[Encoded]:
        return [Encoded(row.ids[: at + 1], at) for row in rows for at in range(row.n_prompt, len(row.ids))]

    at_retain, at_forget = positions(retain), positions(forget)
    tokens = np.array([row.ids[-1] for row in at_retain])
    if len(set(tokens.tolist())) < 2 or len(forget) < FEWEST:
        return {"reason": f"fewer than {FEWEST} rows, or one answer token in all"}
    reader = fitted(hidden_states(subject, at_retain)[-1], tokens.tolist())
    said = reader.predict(hidden_states(subject, at_forget)[-1].numpy())
    right = said == np.array([row.ids[-1] for row in at_forget])
    parts = np.split(right, np.cumsum([row.n_targets for row in forget])[:-1])
    return {"shares": [float(part.mean()) for part in parts]}


def lens_ranks(subject: CausalLM, forget: Sequence[Encoded]) -> dict[str, Any]:
    """`ranks`: [L + 1][n] tokens that the projection of a layer puts before the first answer token; 0 = first choice."""
    norm, head = final_norm(subject.model), subject.model.get_output_embeddings()
    targets = torch.tensor([row.ids[row.n_prompt] for row in forget])
    found: list[Tensor] = []
    at = 0
    with torch.no_grad():
        for states, _ in last_states(subject, forget):
            here = targets[at : at + states.shape[1]].to(states.device)[:, None]
            at += states.shape[1]
            ranks = []
            for layer, state in enumerate(states):
                x = state.to(subject.dtype)
                logits = head(x if layer == len(states) - 1 else norm(x)).float()
                ranks.append((logits > logits.gather(1, here)).sum(1))
            found.append(torch.stack(ranks).cpu())
    return {"ranks": torch.cat(found, dim=1).tolist()}


__all__ = ["FEWEST", "answer_probe", "fitted", "lens_ranks", "new_head", "truth_probe"]
