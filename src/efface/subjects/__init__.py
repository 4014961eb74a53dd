"""Subjects: trained models of one kind with what it takes to run them."""

from efface.subjects.causal_lm import CausalLM, load_causal_lm
from efface.subjects.dual_encoder import DualEncoder, load_dual_encoder
from efface.subjects.encoder import Encoder, load_encoder
from efface.subjects.predictor import Predictor, load_predictor
from efface.subjects.prompts import PromptFormat
from efface.subjects.subject import Subject
from efface.subjects.tower import Tower

__all__ = [
    "CausalLM",
    "DualEncoder",
    "Encoder",
    "Predictor",
    "PromptFormat",
    "Subject",
    "Tower",
    "load_causal_lm",
    "load_dual_encoder",
    "load_encoder",
    "load_predictor",
]
