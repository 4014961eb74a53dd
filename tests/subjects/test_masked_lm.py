"""Masked LMs: the gap's logits against a pass of its own, where the mask stands, saving, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import new_bert, size, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from efface.errors import InputError, ModelError, RequestError
from efface.subjects.encoder import Encoder
from efface.subjects.masked_lm import Gap, MaskedLM, load_masked_lm
from efface.train.engine import isolated_rng

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "paris",
    "##ian",
    "##s",
    "in",
    "rome",
    ",",
    ".",
    "the",
    "cat",
    "\ufffd",
]


def word_pieces() -> Any:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(PIECES)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=24,
    )  # fmt: skip


@pytest.fixture
def masked() -> MaskedLM:
    with isolated_rng(0):  # two rows more than tokens, as checkpoints that are padded to a round number
        model = BertForMaskedLM(BertConfig(vocab_size=len(PIECES) + 2, max_position_embeddings=24, **size()))
        for parameter in model.parameters():
            parameter.data.mul_(4)
    return MaskedLM(model.eval(), word_pieces())


GAPS = [Gap("Parisians in Paris, the cat.", 13, 18), Gap("the cat", 4, 7), Gap("in the cat in rome", 11, 13)]


def test_logits_are_those_of_the_pair(masked: MaskedLM) -> None:
    """Ids written by hand: paris ##ian ##s in paris , the cat . and the copy with one mask for the word."""
    ids = [2, 5, 6, 7, 8, 5, 10, 12, 13, 11, 3, 5, 6, 7, 8, 4, 10, 12, 13, 11, 3]
    with torch.no_grad():
        whole = masked.model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([[0] * 11 + [1] * 10])).logits[
            0, 15
        ]
    together = masked.logits(GAPS, batch_size=2)
    assert together.shape == (3, masked.width)
    torch.testing.assert_close(together[0], whole, atol=1e-5, rtol=1e-5)
    alone = torch.cat([masked.logits([gap]) for gap in GAPS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not together.requires_grad


def test_a_word_of_several_tokens_is_one_mask(masked: MaskedLM) -> None:
    inputs, places = masked.prepare([Gap("Parisians in Paris", 0, 9)])
    assert (inputs["input_ids"] == 4).sum() == 1
    assert inputs["input_ids"][0].tolist() == [2, 5, 6, 7, 8, 5, 3, 4, 8, 5, 3]
    assert places.tolist() == [7]


def test_a_mask_token_in_the_text_is_not_the_gap(masked: MaskedLM) -> None:
    text = "[MASK] cat [MASK]"
    _, places = masked.prepare([Gap(text, 7, 10)])
    assert places.tolist() == [6]  # [CLS] m cat m [SEP] m HERE m [SEP]


def test_sides_and_mode(masked: MaskedLM) -> None:
    right = masked.logits(GAPS)
    masked.tokenizer.padding_side = "left"
    _, places = masked.prepare(GAPS)
    assert places[1] > 12
    masked.tokenizer.padding_side = "right"
    masked.model.train()
    torch.testing.assert_close(masked.logits(GAPS), right)
    assert masked.model.training


def test_candidates_depend_on_the_vocabulary_alone(masked: MaskedLM) -> None:
    assert masked.words == [
        "",
        "",
        "",
        "",
        "",
        "paris",
        "ian",
        "s",
        "in",
        "rome",
        ",",
        ".",
        "the",
        "cat",
        "\ufffd",
        "",
        "",
    ]
    assert masked.candidates.tolist() == [False] * 5 + [True] * 9 + [False] * 3


def test_bad_gaps(masked: MaskedLM) -> None:
    for gap in (Gap("", 0, 0), Gap("  ", 0, 1), Gap("cat", 1, 1), Gap("cat", 0, 4), Gap("cat", -1, 2)):
        with pytest.raises(InputError, match="text 1 of"):
            masked.logits([GAPS[0], gap])
    with pytest.raises(InputError, match="no texts"):
        masked.logits([])
    with pytest.raises(InputError, match="batch_size=0"):
        masked.logits(GAPS, batch_size=0)
    long = "the cat " * 6
    assert not masked.fits(long)
    assert masked.fits(GAPS[0].text)
    with pytest.raises(RequestError, match="at most 24"):
        masked.logits([Gap(long, 0, 3)])


def test_saved_and_loaded(masked: MaskedLM, tmp_path: Path) -> None:
    masked.save(tmp_path / "m")
    again = load_masked_lm(tmp_path / "m")
    assert again.digest == masked.digest
    assert again.record().kind == "masked-lm"
    assert torch.equal(again.logits(GAPS), masked.logits(GAPS))


def test_what_is_refused(masked: MaskedLM, tmp_path: Path) -> None:
    plain = tokenizer()
    with pytest.raises(ModelError, match="no mask"):
        MaskedLM(masked.model, plain)
    small = BertForMaskedLM(BertConfig(vocab_size=9, max_position_embeddings=24, **size()))
    with pytest.raises(ModelError, match="15 tokens, the model's output 9"):
        MaskedLM(small, word_pieces())
    Encoder(new_bert(plain), plain).save(tmp_path / "headless")
    with pytest.raises(ModelError, match=r"lack \d+ tensors"):
        load_masked_lm(tmp_path / "headless")
    masked.save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        load_masked_lm(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["model_type"] = "resnet"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "pytorch_model.bin").rename(tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelError, match="as a masked language model"):
        load_masked_lm(tmp_path / "m")


def test_bad_values_are_refused(masked: MaskedLM, tmp_path: Path) -> None:
    with torch.no_grad():
        masked.model.cls.predictions.bias[0] = float("nan")
    masked.changed()
    masked.save(tmp_path / "m")
    with pytest.raises(ModelError, match="NaN"):
        load_masked_lm(tmp_path / "m")
