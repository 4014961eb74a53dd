"""Tokenizers made from the training texts, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def word_tokenizer(texts: Sequence[str], limit: int) -> Any:
    """A fast tokenizer of whole words and punctuation marks; unknown words become [UNK]."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    raw = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    raw.train_from_iterator(texts, trainers.WordLevelTrainer(vocab_size=limit, special_tokens=["[UNK]", "[EOS]"]))
    return _wrap(raw)


def bpe_tokenizer(texts: Sequence[str], limit: int) -> Any:
    """A fast byte-level BPE tokenizer: no unknown token, spaces kept."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=limit, special_tokens=["[EOS]"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    return _wrap(raw)


def _wrap(raw: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    unknown = "[UNK]" if raw.token_to_id("[UNK]") is not None else None
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[EOS]", unk_token=unknown, pad_token="[EOS]")
