"""Causal language models across a link: head and tail, exits, speculation, and who computes each token."""

from splitedge.llm.anatomy import Anatomy, anatomy_of
from splitedge.llm.cache import KVCache, Ragged
from splitedge.llm.halves import LanguageHead, LanguageTail, split_language_model
from splitedge.llm.sampling import Sampling, choose, gumbel

__all__ = [
    "Anatomy",
    "KVCache",
    "LanguageHead",
    "LanguageTail",
    "Ragged",
    "Sampling",
    "anatomy_of",
    "choose",
    "gumbel",
    "split_language_model",
]
