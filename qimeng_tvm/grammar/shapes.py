"""The phrases of a request line that hold numbers."""

from __future__ import annotations

from qimeng_tvm.errors import RequestError
from qimeng_tvm.grammar.cursor import Cursor
from qimeng_tvm.grammar.words import BATCH, COUNTS, MULTIPLY, OPERATOR_WORDS, sizes_of

DIMENSIONS = ("m", "n", "k")


class Numbers(Cursor):
    """Reads counts, shapes and named numbers."""

    def count(self) -> bool:
        """``2 threads``, ``64 trials``, ``12 batches``."""
        value = self.number()
        what = COUNTS.get(self.word(1)) if value is not None else None
        if what is None:
            return False
        self.at += 2
        self.say(what, value, self.since(self.at - 2))
        return True

    def chain(self) -> list[int]:
        """Numbers joined by x, or in parentheses with commas; empty when there are none."""
        start = self.at
        values: list[int] = []
        if self.word() == "(" and self.number(1) is not None and self.word(2) == ",":
            self.at += 1
            while (value := self.number()) is not None:
                values.append(value)
                self.at += 1
                self.take(",")
            if not self.take(")"):
                raise RequestError(f'"{self.since(start)}" is not closed; write the shape as MxNxK, e.g. 64x64x64')
            return values
        while self.word() == "(":
            self.at += 1
        while (number := self.number()) is not None:
            values.append(number)
            self.at += 1
            if self.word() == "^" and self.number(1) is not None:
                if self.number(1) != 3 or len(values) > 1:
                    words = f"{self.since(start)}^{self.word(1)}"
                    raise RequestError(f'"{words}" is no shape; only a cube such as 1024^3 is')
                self.at += 2
                values = [number] * 3
                break
            ahead = 1 if self.word() in MULTIPLY else 0
            while ahead and self.word(ahead) == "(":
                ahead += 1
            if not ahead:
                break
            if self.number(ahead) is None:
                self.at += ahead
                found = self.word() or "nothing"
                raise RequestError(f'a number must follow "{self.since(start)}", not "{found}"; write e.g. 64x64x64')
            self.at += ahead
        if not values:
            self.at = start
        return values

    def shape(self) -> bool:
        """``64x32x16``, ``12 x 64x32x16``, ``(64, 32, 16)``."""
        start = self.at
        values = self.chain()
        if not values:
            return False
        words = self.since(start)
        if len(values) == 1:
            hint = f" (it reads as the number {values[0]})" if "," in words else ""
            raise RequestError(f'"{words}" stands alone{hint}; write the shape as MxNxK, e.g. 64x64x64, or M=64')
        if len(values) == 2:
            self.say("pair", tuple(values), words)
            return True
        if len(values) > 4:
            raise RequestError(f'"{words}" has {len(values)} numbers; write MxNxK, or batch x MxNxK')
        names = DIMENSIONS if len(values) == 3 else ("batch", *DIMENSIONS)
        for name, value in zip(names, values, strict=True):
            self.say(name, value, words)
        return True

    def named_number(self) -> bool:
        """``M=64``, ``M=N=K=64``, ``m64n64k64``, ``batch 12``, ``threads=2``."""
        start = self.at
        glued = sizes_of(self.word())
        if glued:
            self.at += 1
            for name, value in glued:
                self.say(name, value, self.since(start))
            return True
        names = []
        while (said := self._name()) is not None:
            names.append(said)
            self.at += 1
            equals = self.take("=", ":", "is", "of", "size")
            self.take("=", "of")  # "batch size = 12", "batch size of 12"
            if not equals:
                break
        if not names:
            return False
        number = self.number()
        if number is None:
            if names == ["batch"] and self.word() in (*OPERATOR_WORDS, "matrix"):  # "batch matmul"
                self.say("batched", True, self.since(start))
                return True
            label = names[-1] if len(names[-1]) > 1 else names[-1].upper()
            if self.at < len(self.tokens):
                got = self.tokens[self.at].text
                raise RequestError(f'"{got}" cannot be {label}: it must be a whole number; write e.g. {label}=64')
            raise RequestError(f'"{self.since(start)}" ends without a number; write e.g. {label}=64')
        if names == ["batch"] and self.word(1) in MULTIPLY:  # "batch 12x128x64x128"
            before = self.at
            if len(self.chain()) != 4:
                raise RequestError(f'"{self.since(start)}" needs four numbers; write e.g. batch 12 128x64x128')
            self.at = before
            return self.shape()
        self.at += 1
        for name in names:
            self.say(name, number, self.since(start))
        return True

    def _name(self) -> str | None:
        word = self.word()
        if word in DIMENSIONS:
            return word
        if word in BATCH and not (word == "b" and self.word(1) not in ("=", ":")):
            return "batch"
        if word in ("threads", "cores", "trials") and (self.word(1) in ("=", ":") or self.number(1) is not None):
            return COUNTS[word]
        return None
