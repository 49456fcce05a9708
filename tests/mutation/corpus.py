"""The mutation corpus: every wrong variant that the checks must catch."""

from __future__ import annotations

from corpus_artefacts import ARTEFACT_MUTATIONS
from corpus_families import FAMILY_MUTATIONS
from corpus_operators import OPERATOR_MUTATIONS
from harness import Mutation

MUTATIONS: list[Mutation] = [*FAMILY_MUTATIONS, *OPERATOR_MUTATIONS, *ARTEFACT_MUTATIONS]
