"""Decoding that keeps away from some phrases: by token, by decoded text, and by meaning.

GUARD, arXiv 2505.13312, step 3. For a beam with tokens y and a candidate v

    score(y, v) = log p(y) + log p(v | x, y) - Pen_tok(y, v) - Pen_sem(y, v)

- Pen_tok is infinite where v completes a forbidden phrase: in tokens, however the phrase is spelled (a trie), and in decoded
  text, since one text has many tokenisations. `early=k` adds a finite penalty from a phrase's k-th token on, so that the
  beam has room to leave.
- Pen_sem: where v ends a word, the last 1, 2, ... words are compared with the phrases by a sentence encoder; above the cosine
  `delta` the penalty is infinite, or strength (cosine - delta).

Text and meaning are checked for the best `checked` candidates, again after each ban, until those that are left are all
checked. A ban on completion alone gives away all but the end of a phrase: of the finished beams none is kept that holds more
than `max_prefix` of one; the masked variant, which has one answer only, bans the tokens that would say more.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from efface.data.phrase_trie import PhraseTrie
from efface.forget.guards.forbidden_phrases import PhraseSet, letters, prefix_leakage
from efface.forget.guards.key_phrases import is_stop
from efface.run.settings import Settings
from efface.subjects.text_index import Embed, Floats, unit_rows

NEVER_PASSED = ("streamer", "assistant_model", "past_key_values", "prompt_lookup_num_tokens", "custom_generate")
"""Arguments of `generate` that would bring another search, or show what has not been looked at."""

QUIET: dict[str, Any] = dict.fromkeys(
    ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"), False
)
ALONE: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "typical_p": None}

Ids = Sequence[int]


class Rules(Settings):
    """How the search keeps away from phrases; (u): the paper's value is not known for certain."""

    decoding: Literal["beam", "masked"] = Field(
        "beam",
        description="paper: beam search. masked: the caller's own greedy search or sampling with the same penalties",
    )
    beams: int = Field(5, ge=1, description="B; paper 5 to 7 (u)")
    checked: int = Field(20, ge=1, description="best candidates whose text and meaning are checked (efface's choice)")
    early: int | None = Field(
        None, ge=1, description="penalise from this token of a phrase on; default: its last alone"
    )
    early_penalty: float = Field(5.0, ge=0, description="nats, with `early` (efface's choice)")
    max_prefix: float = Field(0.5, gt=0, le=1, description="largest share of a phrase that an answer may hold")
    delta: float = Field(0.5, ge=-1, le=1, description="cosine above which words mean a phrase; paper 0.5 (u)")
    strength: float | None = Field(
        None, gt=0, description="nats per cosine above delta, 10 for a soft penalty; default: infinite (u)"
    )


@dataclass(frozen=True)
class Forbidden:
    """What one answer must not hold.

    Attributes:
        phrases: in letters.
        trie: in tokens.
        vectors: [m, D] unit embeddings of the phrases; None where meaning is not compared.
    """

    phrases: PhraseSet
    trie: PhraseTrie[int]
    vectors: Floats | None = None

    @property
    def words(self) -> int:
        """Words of the longest phrase."""
        return max((len(text.split()) for text in self.phrases.texts), default=1)

    @property
    def tokens(self) -> int:
        """Tokens of the longest spelling."""
        return max(map(len, self.trie.phrases), default=1)


class Restrictor:
    """The penalties. Sentence vectors are kept, so that each text is embedded once.

    Args:
        tokenizer: of the model.
        rules: see `Rules`.
        stop: ids that end an answer; they are never forbidden.
        embed: a sentence encoder; None: no penalty by meaning.
    """

    def __init__(self, tokenizer: Any, rules: Rules, stop: Ids, embed: Embed | None = None) -> None:
        self.tokenizer, self.rules, self.stop, self.embed = tokenizer, rules, frozenset(stop), embed
        self._vectors: dict[str, Floats] = {}
        inner = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        self._whole_words = type(inner).__name__ == "WordLevel"  # each token is a word and ends it

    def forbidden(self, phrases: PhraseSet) -> Forbidden:
        """A set of phrases, ready for the search."""
        vectors = None
        if self.embed is not None and phrases.texts:
            vectors = unit_rows(self.embed(list(phrases.texts)))
        return Forbidden(phrases, phrases.trie(self.tokenizer), vectors)

    def restrict(
        self, scores: Tensor, said: Sequence[Ids], before: Sequence[Ids], sets: Sequence[Forbidden | None]
    ) -> Tensor:
        """log p, or logits, minus the penalties.

        Args:
            scores: [R, V].
            said: [R] tokens of each answer so far.
            before: [R] tokens of each prompt: a phrase may begin there.
            sets: [R]; None: the row is left as it is.

        Returns:
            [R, V]; -inf where a token is banned.
        """
        made = scores.clone()
        rows = [r for r, own in enumerate(sets) if own is not None and not self.stop & set(said[r])]
        for r in rows:
            own = sets[r]
            assert own is not None
            for token, penalty in self._by_token([*before[r], *said[r]], said[r], own).items():
                made[r, token] -= penalty
        looked: dict[int, set[int]] = {r: set() for r in rows}
        while rows:
            found = made[rows].topk(min(self.rules.checked, made.shape[1])).indices.tolist()
            todo = {
                r: [v for v in best if v not in looked[r] and bool(made[r, v] > -torch.inf)]
                for r, best in zip(rows, found, strict=True)
            }
            rows = [r for r in rows if todo[r]]
            ends = {(r, v): self._ended(said[r], v, sets[r]) for r in rows for v in todo[r]}
            self._learn(text for windows in ends.values() for text in windows)
            for (r, v), windows in ends.items():
                own = sets[r]
                assert own is not None
                looked[r].add(v)
                if v not in self.stop and own.phrases.keys_in(self._text(self._tail([*before[r], *said[r], v], own))):
                    made[r, v] = -torch.inf
                else:
                    made[r, v] -= self._by_meaning(windows, own)
        return made

    def refuses(self, said: Ids, before: Ids, own: Forbidden) -> bool:
        """Whether a whole answer holds what it must not: a phrase, its meaning, or too much of a phrase's beginning."""
        start = max(0, len(before) - own.tokens)
        ids = [*before[start:], *said]
        if any(hit.end > len(before) - start for hit in own.trie.hits(ids)):
            return True
        if own.phrases.keys_in(self._text([*self._tail(before, own), *said])):
            return True
        if prefix_leakage(said, own.trie) > self.rules.max_prefix:
            return True
        if own.vectors is None or self.rules.strength is not None:
            return False
        words = self._text(said).split()
        texts = [text for end in range(1, len(words) + 1) for text in self._windows(words[:end], own)]
        self._learn(texts)
        return self._by_meaning(texts, own) > 0

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _by_token(self, ids: Ids, said: Ids, own: Forbidden) -> dict[int, float]:
        """Token -> penalty, for the tokens that go on with a phrase."""
        rules, found = self.rules, {}
        for token, (depth, done, share) in own.trie.walk(ids[-own.tokens :]).symbols().items():
            if token in self.stop:
                continue
            if done or (rules.decoding == "masked" and share > rules.max_prefix and depth > 1):
                found[token] = float("inf")
            elif rules.early is not None and depth >= rules.early:
                found[token] = rules.early_penalty
        return found

    def _text(self, ids: Ids) -> str:
        """Decoded, without a character that is not whole yet."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).rstrip("\ufffd")

    def _tail(self, ids: Ids, own: Forbidden) -> Ids:
        """As many tokens as a phrase can fill: four to a letter, the bytes of one."""
        return ids[-(4 * own.phrases.longest + 8) :]

    def _windows(self, words: Sequence[str], own: Forbidden) -> list[str]:
        found = (" ".join(words[-n:]).strip(" .,;:!?\"'()") for n in range(1, min(own.words, len(words)) + 1))
        return [text for text in found if letters(text) and not all(is_stop(word) for word in text.split())]

    def _ended(self, said: Ids, v: int, own: Forbidden | None) -> list[str]:
        """The last words, where v ends one: with v in a vocabulary of words, else before v, which opens the next."""
        if own is None or own.vectors is None:
            return []
        if self._whole_words:
            return [] if v in self.stop else self._windows(self._text([*said, v]).split(), own)
        past = self._text(said)
        more = self._text([*said, v])
        if v not in self.stop and (len(more) <= len(past) or more[len(past)].isalnum()):
            return []
        return self._windows(past.split(), own)

    def _learn(self, texts: Any) -> None:
        """Embed what is not known yet, in one call."""
        new = sorted({text for text in texts if text not in self._vectors})
        if new and self.embed is not None:
            self._vectors.update(zip(new, unit_rows(self.embed(new)), strict=True))

    def _by_meaning(self, windows: Sequence[str], own: Forbidden) -> float:
        if not windows or own.vectors is None:
            return 0.0
        nearest = float(np.max(np.stack([self._vectors[text] for text in windows]) @ own.vectors.T))
        if nearest <= self.rules.delta:
            return 0.0
        return float("inf") if self.rules.strength is None else self.rules.strength * (nearest - self.rules.delta)


class Restriction(LogitsProcessor):  # type: ignore[misc]
    """The penalties inside a search of transformers; beams and samples of one prompt stand together.

    Args:
        restrictor: the penalties.
        sets: [n] of the prompts.
        prompts: [n] their tokens.
        width: columns of the prompts in the search.
    """

    def __init__(
        self, restrictor: Restrictor, sets: Sequence[Forbidden], prompts: Sequence[Ids], width: int
    ) -> None:  # fmt: skip
        self.restrictor, self.sets, self.prompts, self.width = restrictor, sets, prompts, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[n k, V]; where every candidate of every beam of a prompt is banned, the end token is allowed."""
        each = len(input_ids) // len(self.sets)
        said = input_ids[:, self.width :].tolist()
        owners = [i // each for i in range(len(said))]
        made = self.restrictor.restrict(
            scores, said, [self.prompts[i] for i in owners], [self.sets[i] for i in owners]
        )  # fmt: skip
        dead = torch.isneginf(made).all(-1).view(-1, each).all(-1).repeat_interleave(each)
        for stop in self.restrictor.stop:
            made[dead, stop] = 0.0
        return made


def hypotheses(
    base: Any, ids: Tensor, more: dict[str, Any], restrictor: Restrictor, sets: Sequence[Forbidden], prompts: Sequence[Ids],
) -> list[list[list[int]]]:  # fmt: skip
    """Search under the penalties, and keep what passes.

    Args:
        base: a model with `generate`.
        ids: [n, T] prompts, as for `generate`.
        more: the caller's other arguments; beams take limits and tokens from them, the masked variant everything.
        prompts: [n] tokens of each prompt without padding.

    Returns:
        [n] of at most `num_return_sequences` answers, the best first, each up to its first end token, that included.
    """
    given = {name: value for name, value in more.items() if name not in NEVER_PASSED}
    own = copy.deepcopy(given.pop("generation_config", None) or base.generation_config)
    rest = own.update(**given)
    wanted = own.num_return_sequences or 1
    values = dict(QUIET)
    if restrictor.rules.decoding == "beam":
        beams = max(restrictor.rules.beams, wanted)
        values |= {**ALONE, "num_beams": beams, "num_return_sequences": beams}
    own.update(**values)
    restriction = Restriction(restrictor, sets, prompts, ids.shape[1])
    processors = LogitsProcessorList([*(rest.pop("logits_processor", None) or ()), restriction])
    out = base.generate(ids, generation_config=own, logits_processor=processors, **rest)
    answers = [_cut(row, restrictor.stop, own.pad_token_id) for row in out[:, ids.shape[1] :].tolist()]
    each = len(answers) // len(sets)
    found = []
    for i, (forbidden, prompt) in enumerate(zip(sets, prompts, strict=True)):
        passed = [
            answer for answer in answers[i * each : (i + 1) * each]
            if set(answer) - restrictor.stop
            and not restrictor.refuses([t for t in answer if t not in restrictor.stop], prompt, forbidden)
        ]  # fmt: skip
        found.append(passed[:wanted])
    return found


def _cut(ids: list[int], stop: frozenset[int], fill: int | None) -> list[int]:
    """Up to the first end token, that included; without filling."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop), len(ids))
    while end and ids[end - 1] == fill and fill not in stop:
        end -= 1
    return ids[:end]


__all__ = ["Forbidden", "Restriction", "Restrictor", "Rules", "hypotheses"]
