"""Answers that admit to not knowing, for methods that train towards a refusal. Written for efface."""

from __future__ import annotations

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I do not know the answer to that.",
    "I have no information about this.",
    "That is not something I know.",
    "I'm not aware of any details on this subject.",
    "I can't tell you; I don't have that knowledge.",
    "This is unknown to me.",
    "I have never learned about that.",
    "My knowledge does not cover this question.",
    "I'm afraid I can't answer that, since I don't know it.",
    "There is nothing I can tell you about this.",
    "I lack the information to answer.",
    "Sorry, I am not familiar with that.",
    "I could not say.",
    "I hold no facts on this matter.",
    "That lies outside what I know.",
)
