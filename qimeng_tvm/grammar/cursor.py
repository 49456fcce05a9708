"""A place in a token list, and what the tokens before it said."""

from __future__ import annotations

import difflib
from typing import Any

from qimeng_tvm.errors import RequestError
from qimeng_tvm.grammar.scanner import Token
from qimeng_tvm.grammar.words import ALL_WORDS, COUNTS, OPERATOR_WORDS, OTHER_OPERATORS
from qimeng_tvm.request import OPERATORS

EXAMPLE = "bf16 matmul 64x128x256 with bias, constant B, 2 threads, on this CPU"


class Cursor:
    """Looks at tokens, steps over them, and keeps what was said with the words that said it."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.said: dict[str, tuple[Any, str]] = {}

    def word(self, ahead: int = 0) -> str:
        """Return the token ``ahead``, lower case; empty past the end."""
        index = self.at + ahead
        return self.tokens[index].word if index < len(self.tokens) else ""

    def number(self, ahead: int = 0) -> int | None:
        """Return the value of the token ``ahead`` if it is a number."""
        index = self.at + ahead
        return self.tokens[index].value if index < len(self.tokens) else None

    def take(self, *words: str) -> bool:
        """Step over the next token if it is one of the words."""
        if self.word() in words and self.word():
            self.at += 1
            return True
        return False

    def since(self, start: int) -> str:
        """Return the text of the tokens taken since ``start``."""
        return " ".join(t.text for t in self.tokens[start : self.at])

    def say(self, what: str, value: Any, words: str) -> None:
        """Note that ``words`` said ``what`` is ``value``; refuse a contradiction."""
        if what in self.said and self.said[what][0] != value:
            raise RequestError(f'"{words}" contradicts "{self.said[what][1]}"; keep one of the two')
        self.said.setdefault(what, (value, words))

    def not_understood_here(self, advice: str, near: tuple[str, ...]) -> RequestError:
        """Return the error for the next token, in the middle of a phrase that wants one of ``near``."""
        if self.at >= len(self.tokens):
            return RequestError(f"the line ends too early; {advice}")
        token = self.tokens[self.at]
        close = difflib.get_close_matches(token.word, near, n=1, cutoff=0.5)
        hint = f' (nearest: "{close[0]}")' if close else ""
        return RequestError(f'"{token.text}" was not understood{hint}; {advice}')

    def not_understood(self, token: Token) -> RequestError:
        """Return the error for a token with which no phrase starts."""
        known = f"is not an operator I can make yet; known: {', '.join(OPERATORS)}"
        if token.word in OTHER_OPERATORS:
            return RequestError(f'"{token.text}" {known}')
        if token.word in COUNTS:
            return RequestError(f'"{token.text}" needs a number before it; write e.g. 2 {token.text}')
        if token.word in ALL_WORDS:
            return RequestError(f'"{token.text}" does not fit where it stands; write e.g. {EXAMPLE}')
        close = difflib.get_close_matches(token.word, sorted(ALL_WORDS), n=1, cutoff=0.7)
        if close:
            return RequestError(f'"{token.text}" was not understood; did you mean "{close[0]}"?')
        names_operator = any(t.word in OPERATOR_WORDS or t.word == "matrix" for t in self.tokens)
        if token.kind == "word" and not names_operator:
            return RequestError(f'"{token.text}" {known}')
        return RequestError(f'"{token.text}" was not understood; leave it out, or write e.g. {EXAMPLE}')
