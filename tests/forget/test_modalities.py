"""The table of what classifiers can be made to forget: texts and pictures, by class, by rows and by person.

`test_contract_predictors.py` has the same for arrays; together they are the nine combinations. A method takes every cell that
its card claims, or refuses it with a reason; which ones refuse is written down here, so that a cell that is lost is noticed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from modality_worlds import MODALITIES, Modality, modality_model, modality_request, modality_rows
from test_contract_predictors import CARDS, CLASSIFIERS, made

from efface.errors import InputError
from efface.forget.edit import Edit
from efface.forget.method import find_method

KINDS = ("class", "rows", "person")
ONLY: dict[str, dict[str, str]] = {
    "concept-poisoning": {"rows": "expected one class", "person": "expected one class"},
}
"""By method: the kinds of request that it refuses, and what it says."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*of the anchors were left out:UserWarning", "ignore:.*:UserWarning:efface.forget.edits"
)


def claimed(name: str, modality: Modality) -> bool:
    return bool({"any", modality} & set(CARDS[name].modalities))


def short(name: str) -> dict[str, Any]:
    """One pass, where a method trains at all."""
    return {"epochs": 1} if "epochs" in find_method(name).config_class.model_fields else {}


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_worlds_are_learnt_and_the_requests_differ(modality: Modality) -> None:
    subject = modality_model(modality)
    rows = subject.encode_rows(modality_rows(modality))
    said = subject.read(rows)[1].argmax(1)
    assert float((said == torch.tensor([row.target for row in rows])).float().mean()) > 0.95
    assert subject.modality == modality
    gone = {kind: set(modality_request(modality, kind).forget["id"]) for kind in KINDS}
    assert len({frozenset(ids) for ids in gone.values()}) == 3
    assert len(set(modality_request(modality, "person").forget["label"])) == 3, "a person is no class"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_cell(name: str, modality: Modality, kind: str, tmp_path: Path) -> None:
    """Fit leaves the model as it was; the edit changes what it says, also when it is read again; removed, all bits are back."""
    subject, request = modality_model(modality), modality_request(modality, kind)
    if not claimed(name, modality):
        pytest.skip(f"{name} is for {', '.join(CARDS[name].modalities)}")
    digest = subject.digest
    if kind in ONLY.get(name, {}):
        with pytest.raises(InputError, match=ONLY[name][kind]):
            made(subject, request, name, tmp_path, **short(name))
        subject.changed()
        assert subject.digest == digest
        return
    before = subject.read(subject.encode_rows(request.forget))[1]
    edit = made(subject, request, name, tmp_path, **short(name))
    subject.changed()
    assert subject.digest == digest
    assert edit.facts.tensors > 0
    again = Edit.load(edit.folder)
    again.apply(subject)
    assert subject.digest == edit.facts.edited_digest != digest
    assert not torch.equal(subject.read(subject.encode_rows(request.forget))[1], before)
    again.remove(subject)
    assert subject.digest == digest
    assert torch.equal(subject.read(subject.encode_rows(request.forget))[1], before)
