"""Subjects: trained models of one kind with what it takes to run them."""

from efface.subjects.causal_lm import CausalLM, load_causal_lm
from efface.subjects.prompts import PromptFormat

__all__ = ["CausalLM", "PromptFormat", "load_causal_lm"]
