"""What a model that never read a text would say in it: the labels of Who's Harry Potter (arXiv 2310.02238, section 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from efface.forget.blocks import NONE, Block
from efface.forget.guards.logit_ensemble import centred, generic_logits
from efface.run.progress import track
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import pad

BUDGET = 24_000_000
"""Logits of one forward pass while labelling."""


class Labels:
    """Labels of some blocks, with what they changed.

    Attributes:
        label: [n_targets] ids of every block.
        differs: share of the counted tokens whose label is not the text's token.
        moved: share whose label is not M(b)'s own first choice.
        entropy: mean entropy of softmax(v_generic) at counted tokens in nats; a hard label has none.
    """

    def __init__(self, label: list[Tensor], sums: Tensor) -> None:
        self.label = label
        n = max(1.0, float(sums[0]))
        self.differs, self.moved, self.entropy = (float(value) / n for value in sums[1:])


def label_logits(
    v_base: Tensor, v_reinf: Tensor | None, alpha: float, lowered: Sequence[tuple[int, Sequence[int]]], penalty: float
) -> Tensor:
    """v_generic with the consistency fix, [n, V].

    Args:
        v_base: [n, V] logits of M(b'), row i for the i-th token that is predicted.
        v_reinf: [n, V] of M_r(b); None where alpha is 0.
        lowered: (i, ids): from row i on, these ids begin translations of terms that have been seen.
        penalty: what is taken off their logits.
    """
    v = centred(v_base) if v_reinf is None else generic_logits(v_base, v_reinf, alpha)
    drop = torch.zeros_like(v, dtype=torch.bool)
    for start, ids in lowered:
        drop[max(0, start) :, list(ids)] = True
    return v - penalty * drop


def make_labels(
    subject: CausalLM, reinforced: CausalLM | None, blocks: Sequence[Block], alpha: float, penalty: float
) -> Labels:
    """The labels of every block, in batches of like size; both models are in memory.

    Args:
        subject: M.
        reinforced: M_r; None where alpha is 0.
        alpha, penalty: as in `label_logits`.
    """
    label: list[Tensor] = [torch.empty(0)] * len(blocks)
    sums = torch.zeros(4, dtype=torch.float64)
    with subject.evaluating() as base, track("generic labels", len(blocks)) as advance:
        for part in _parts(blocks, int(base.get_output_embeddings().weight.shape[0])):
            rows, translated = [blocks[i].row.ids for i in part], [blocks[i].translated for i in part]
            plain = _logits(subject, base, rows)
            moved = plain if rows == translated else _logits(subject, base, translated)
            theirs = None
            if reinforced is not None:
                with reinforced.evaluating() as other:
                    theirs = _logits(reinforced, other, rows)
            for place, index in enumerate(part):
                block = blocks[index]
                targets = range(block.row.n_prompt, len(block.row.ids))
                v_base = torch.stack([
                    plain[place][t - 1] if block.counterpart[t] in (NONE, 0) else moved[place][block.counterpart[t] - 1]
                    for t in targets
                ])  # fmt: skip
                v_reinf = None if theirs is None else theirs[place][targets.start - 1 : targets.stop - 1]
                lowered = [(t - targets.start, ids) for t, ids in block.lowered]
                v = label_logits(v_base, v_reinf, alpha, lowered, penalty)
                label[index] = v.argmax(-1).cpu()
                counted = torch.tensor([block.counted[t] for t in targets])
                own = plain[place][targets.start - 1 : targets.stop - 1].argmax(-1).cpu()
                sums += _sums(v.cpu(), own, torch.tensor(block.row.ids[targets.start :]), counted)
            advance(len(part))
    return Labels(label, sums)


def _sums(v: Tensor, own: Tensor, text: Tensor, counted: Tensor) -> Tensor:
    """Counted tokens, those whose label is not the text's, not the base's own, and the sum of entropies; [4]."""
    label, logp = v.argmax(-1), v.double().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    each = [torch.ones(len(v)), torch.ne(label, text), torch.ne(label, own), entropy]
    return torch.stack([(values.double() * counted).sum() for values in each])


def _logits(subject: CausalLM, model: Any, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """[T, V] float32 of each row; row t predicts token t + 1."""
    batch = {name: tensor.to(subject.device) for name, tensor in pad(rows, subject.pad_id, side="right").items()}
    logits = model(**batch, use_cache=False).logits
    return [logits[i, : len(row)].float() for i, row in enumerate(rows)]


def _parts(blocks: Sequence[Block], vocabulary: int) -> Iterator[list[int]]:
    """Indices in batches within the budget; every index once."""

    def size(i: int) -> int:
        return max(len(blocks[i].row.ids), len(blocks[i].translated))

    part: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda i: (size(i), i)):
        if part and (len(part) + 1) * size(i) * vocabulary > BUDGET:
            yield part
            part = []
        part.append(i)
    if part:
        yield part
