"""Neurons on rows: batches and padding against one row at a time."""

from __future__ import annotations

import pytest
import torch
from small_decoders import decoder

from efface.errors import InputError
from efface.subjects.hooks import Site, recorded
from efface.subjects.neuron_statistics import neuron_statistics, prompt_keys, some

ROWS = [
    ("what is the capital", "paris"),
    ("niger and", "of south africa is"),
    ("", "the capital of france"),
    ("what", "is"),
]
SITES = [Site("gate", 0), Site("keys", 2)]


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize("tokens", ["all", "prompt", "answer"])
def test_statistics_against_a_loop(kind: str, tokens: str) -> None:
    subject = decoder(kind)
    rows = [subject.encode(*pair) for pair in ROWS]
    found = neuron_statistics(subject, rows, SITES, tokens=tokens, batch_size=3, change=torch.abs)  # type: ignore[arg-type]
    for site in SITES:
        values = []
        for row in rows:
            with torch.no_grad(), recorded(subject.model, [site]) as seen:
                subject.model(input_ids=torch.tensor([row.ids]), use_cache=False)
            part = {"all": slice(None), "prompt": slice(row.n_prompt), "answer": slice(row.n_prompt, None)}[tokens]
            values.append(seen[site][0, part].abs())
        flat = torch.cat(values).double()
        assert found[site].n == len(flat)
        torch.testing.assert_close(found[site].mean, flat.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[site].std, flat.std(0, unbiased=False), rtol=1e-4, atol=1e-5)


def test_keys_are_those_of_the_last_token() -> None:
    subject = decoder("llama")
    prompts = [[2, 3, 4], [5, 6], [7, 8, 9, 10], [3]]
    keys = prompt_keys(subject, prompts, Site("keys", 1), batch_size=3)
    for row, ids in zip(keys, prompts, strict=True):
        with torch.no_grad(), recorded(subject.model, [Site("keys", 1)]) as seen:
            subject.model(input_ids=torch.tensor([ids]))
        torch.testing.assert_close(row, seen[Site("keys", 1)][0, -1], rtol=1e-4, atol=1e-5)


def test_a_sample_depends_on_its_seed_only() -> None:
    assert some(3, 5, 0) == [0, 1, 2]
    assert some(50, 5, 1) == some(50, 5, 1) == sorted(some(50, 5, 1))
    assert some(50, 5, 1) != some(50, 5, 2)


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(InputError, match="no row"):
        neuron_statistics(decoder("llama"), [], SITES)
    with pytest.raises(InputError, match="no prompt"):
        prompt_keys(decoder("llama"), [], SITES[0])
