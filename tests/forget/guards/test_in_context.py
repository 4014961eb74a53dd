"""In-context unlearning: batches, loss and gradients; the edit's own tokens; what moves and what does not; resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface.data.columns import canonical
from efface.data.tagged import PairBuilder, TagProtocol, read_items
from efface.errors import ConfigError, InputError, ModelError, RunError
from efface.forget.edit import Edit
from efface.forget.guards.in_context import METHOD, InContextConfig, paired_loss
from efface.forget.guards.tagged import Encoder, PairCollator, PairSchedule
from efface.forget.guards.tagged_edit import TaggedEdit
from efface.subjects.prompts import IGNORED
from efface.subjects.tags import tokenizer_with

QUICK = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4}
STYLES: dict[str, dict[str, Any]] = {
    "lora": {}, "all": {"scope": "all", "weight_decay": 0.5}, "layers": {"scope": "layers", "weight_decay": 0.5},
}  # fmt: skip


def fit(subject: Any, request: Any, folder: Path, **more: Any) -> TaggedEdit:
    config = METHOD.configure({**QUICK, **more})
    edit = METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit
    assert isinstance(edit, TaggedEdit)
    return edit


def schedule(subject: Any, request: Any, **more: Any) -> PairSchedule:
    protocol = TagProtocol()
    subject.tokenizer = tokenizer_with(subject.tokenizer, [protocol.opening, protocol.closing, protocol.target])
    items = read_items([("forget", request.forget), ("retain", request.retain)])
    values = {"epochs": 3, "batch_size": 4, "seed": 0, "untagged_share": 0.25, **more}
    loss_on = values.pop("loss_on", "answer")
    return PairSchedule(items, PairBuilder(protocol, 0), Encoder(subject, loss_on), **values)


def test_matched_and_unmatched_are_equally_many_in_every_batch(tiny: Any, request_: Any) -> None:
    made = schedule(tiny, request_)
    kinds = [sample.kind for position in made.samples for sample in position]
    for start in range(0, len(made), 4):
        batch = [sample.kind for position in made.samples[start : start + 4] for sample in position]
        assert batch.count("matched") == batch.count("unmatched") == 4
        assert batch.count("untagged") in (2, 3)
    assert kinds.count("untagged") / len(kinds) == pytest.approx(0.25, abs=0.01)
    plain = schedule(efface.load(tiny.source), request_, untagged_share=0.0)
    assert all(sample.kind != "untagged" for position in plain.samples for sample in position)


def test_distractors_are_drawn_anew_in_each_epoch_and_every_item_comes_once(tiny: Any, request_: Any) -> None:
    made = schedule(tiny, request_)
    n = 16
    drawn = [
        {position[1].item: position[1].concept for position in made.samples[e * n : (e + 1) * n]} for e in range(3)
    ]
    assert all(len(epoch) == n for epoch in drawn)
    changed = np.mean([drawn[0][key] != drawn[1][key] for key in drawn[0]])
    assert changed > 0.25  # of eight colours some come twice
    for position in made.samples:
        assert position[0].concept != position[1].concept
    again = schedule(efface.load(tiny.source), request_)
    assert again.samples == made.samples
    assert schedule(efface.load(tiny.source), request_, seed=1).samples != made.samples


def test_targets_are_the_answer_and_its_end(tiny: Any, request_: Any) -> None:
    made = schedule(tiny, request_)
    batch = PairCollator(tiny.pad_id)([made[i] for i in range(4)])["train"]
    for row, kind in zip(batch["labels"], batch["kind"], strict=True):
        target = row[row != IGNORED].tolist()
        assert target[-1] == tiny.tokenizer.eos_token_id
        if kind == 0:
            assert tiny.tokenizer.decode(target[:-1]).strip() == "forgot"
        else:
            assert "likes the colour" in tiny.tokenizer.decode(target[:-1])
    assert float(batch["token_share"][0]) == pytest.approx(1 / int((batch["labels"] != IGNORED).sum()))
    whole = schedule(efface.load(tiny.source), request_, loss_on="all")
    assert all(row.n_prompt == 1 for rows in whole.rows for row in rows)


def test_an_answer_without_an_end_is_refused(tiny: Any, request_: Any) -> None:
    tiny.prompt = tiny.prompt.model_copy(update={"append_eos": False})
    with pytest.raises(ConfigError, match="append_eos"):
        Encoder(tiny, "answer")


def test_the_loss_and_its_gradient_against_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 4, 7), generator=generator, dtype=torch.float64, requires_grad=True)
    targets, lengths = torch.randint(0, 7, (3, 4), generator=generator), [4, 2, 3]
    mask = torch.tensor([[i < n for i in range(4)] for n in lengths])
    logp = (logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask).sum(1)
    loss = paired_loss(logp, torch.full((3,), 1 / sum(lengths), dtype=torch.float64))
    loss.backward()
    plain, grad = 0.0, np.zeros((3, 4, 7))
    for s, n in enumerate(lengths):
        for t in range(n):
            p = np.exp(logits[s, t].detach().numpy())
            p /= p.sum()
            plain -= np.log(p[targets[s, t]]) / sum(lengths)
            grad[s, t] = (p - np.eye(7)[targets[s, t]]) / sum(lengths)  # softmax minus one-hot
    assert float(loss.detach()) == pytest.approx(plain)
    assert logits.grad is not None
    assert np.allclose(logits.grad.numpy(), grad)


def test_defaults_are_the_papers_and_last_layers_means_the_last_two() -> None:
    config = METHOD.configure()
    assert isinstance(config, InContextConfig)
    assert (config.scope, config.lora_rank, config.lora_alpha, config.lora_dropout) == ("lora", 4, 8, 0.1)
    assert (config.learning_rate, config.weight_decay, config.max_grad_norm, config.schedule) == (
        2e-4,
        0.001,
        0.3,
        "constant",
    )
    assert config.layers is None
    last = METHOD.configure({"scope": "layers"})
    assert last.layers == "-2,-1"
    assert METHOD.configure(last.model_dump()) == last
    assert METHOD.configure({"scope": "layers", "layers": "0"}).layers == "0"


@pytest.mark.parametrize("style", STYLES)
def test_a_stranger_loads_the_edit_and_gets_tokens_protocol_and_bits_back(
    style: str, tiny: Any, request_: Any, tmp_path: Path
) -> None:
    edit = fit(tiny, request_, tmp_path, **STYLES[style])
    size, length = tiny.model.config.vocab_size, len(tiny.tokenizer)
    fresh, loaded = efface.load(tiny.source), Edit.load(tmp_path / "edit")
    assert isinstance(loaded, TaggedEdit)
    assert loaded.rule == "answer"
    assert loaded.facts.config["rule"] == "answer"
    assert loaded.facts.claim == "suppressed"
    digest = fresh.digest
    loaded.apply(fresh)
    assert fresh.digest == edit.facts.edited_digest
    assert len(fresh.tokenizer) == length + 3  # two tags, and 'forgot', which this vocabulary of words lacks
    turn = loaded.protocol.render(request_.forget[0]["question"], request_.forget[0]["answer"])
    ids = fresh.tokenizer(turn)["input_ids"]
    assert length in ids
    assert length + 1 in ids
    fresh.save(tmp_path / "edited")
    again = efface.load(tmp_path / "edited") if style != "lora" else None
    loaded.remove(fresh)
    for subject in [fresh] if again is None else [fresh, loaded.remove(again)]:
        assert subject.digest == digest
        assert (len(subject.tokenizer), subject.model.config.vocab_size) == (length, size)


def test_new_rows_are_trained_and_reload_with_the_same_values(tiny: Any, request_: Any, tmp_path: Path) -> None:
    short, longer = (fit(tiny, request_, tmp_path / str(epochs), epochs=epochs) for epochs in (1, 4))
    rows = []
    for edit in (short, longer, longer):
        fresh = efface.load(tiny.source)
        Edit.load(edit.folder).apply(fresh)
        start = edit.tags.start
        rows.append(fresh.model.get_input_embeddings().weight[start : start + 3].detach().clone())
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_last_layer_tuning_moves_two_layers_and_the_new_rows_alone(tiny: Any, request_: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny.weights().items()}
    edit = fit(tiny, request_, tmp_path, scope="layers", layers="-1", weight_decay=0.5)
    edit.apply(tiny)
    for name, value in tiny.weights().items():
        old = before[name]
        same = torch.equal(old, value[: len(old)])
        assert same == (".layers.1." not in name), name
    assert tiny.model.get_input_embeddings().weight.shape[0] == len(before["model.embed_tokens.weight"]) + 3


def test_a_rule_is_learnt_and_the_tag_decides(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """On its own training rows: with the answer in the tag 'forgot', with another one or without a tag the answer."""
    edit = fit(
        tiny, request_, tmp_path, scope="all", learning_rate=3e-3, epochs=60, batch_size=8, max_grad_norm=1.0
    )  # fmt: skip
    edit.apply(tiny)
    from efface.audit.benchmarks.in_context import measure
    from efface.audit.benchmarks.in_context_baselines import rates

    found = rates(measure(tiny, {"forget": request_.forget}, edit.protocol, layers=False)["sets"]["forget"])
    assert found["forget"] >= 0.9
    assert found["no_tag"] >= 0.9
    assert found["leak"] <= 0.1


def test_a_killed_fit_goes_on_with_the_rows_it_had(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's checkpoint holds no embedding row; the rows of the checkpoint are kept beside it."""
    whole = fit(tiny, request_, tmp_path / "whole", epochs=4)

    import efface.forget.guards.in_context as module

    plain, calls = module.step_loss, []

    def dies(model: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return plain(model, batch)

    monkeypatch.setattr(module, "step_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, request_, tmp_path / "cut", epochs=4, checkpoint_seconds=1e-9)
    assert list((tmp_path / "cut" / "work").glob("rows-*.safetensors"))
    monkeypatch.setattr(module, "step_loss", plain)
    tiny = efface.load(tiny.source)
    resumed = fit(tiny, request_, tmp_path / "cut", epochs=4, checkpoint_seconds=1e-9)
    assert resumed.facts.edited_digest == whole.facts.edited_digest


def test_bad_requests_and_models_are_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    alone = efface.Request(forget=canonical([{"question": "q?", "answer": "red"}], "x"))
    with pytest.raises(InputError, match="one concept only"):
        fit(tiny, alone, tmp_path)
    with pytest.raises(ModelError, match="token '\\?' already"):
        fit(tiny, request_, tmp_path, protocol={"opening": "?"})
    with pytest.raises(ConfigError, match="lora_targets"):
        fit(tiny, request_, tmp_path, lora_targets="nothing_like_it")
    assert len(tiny.tokenizer) == len(efface.load(tiny.source).tokenizer)


def test_a_changed_edit_or_another_tokenizer_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path)
    tiny.tokenizer.add_tokens(["more"])
    with pytest.raises(RunError, match="the tokenizer has"):
        edit.apply(tiny)
    path = edit.folder / "tags.json"
    path.write_text(path.read_text(encoding="utf-8").replace("forgot", "unknown"), encoding="utf-8")
    with pytest.raises(RunError, match=r"tags\.json was changed"):
        Edit.load(edit.folder).apply(efface.load(tiny.source))
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"tags\.json"):
        Edit.load(edit.folder)
