"""The phrases of a request line, but for the shape, and the request they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qimeng_tvm.errors import RequestError
from qimeng_tvm.grammar.cursor import EXAMPLE
from qimeng_tvm.grammar.scanner import Token, scan
from qimeng_tvm.grammar.shapes import DIMENSIONS, Numbers
from qimeng_tvm.grammar.words import (
    ALL_WORDS,
    CONSTANT,
    COUNTS,
    EPILOGUE_WORDS,
    HOST,
    JOINING,
    LAYOUTS,
    MULTIPLY,
    NOISE,
    NONE,
    OPERATOR_WORDS,
    OTHER_EPILOGUES,
    RESULT,
    THIS,
    TRANSPOSED,
    UNSUPPORTED_DTYPES,
    VARIABLE,
    WEIGHTS,
    dtypes_of,
)
from qimeng_tvm.request import OPERATORS, RESULTS, SUPPORTED, Request, validate


def read(line: str) -> Request:
    """Read a request line (see :func:`qimeng_tvm.request.parse`)."""
    return _Reader(scan(line)).read()


class _Reader(Numbers):
    """Reads phrases off the tokens until none is left."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.epilogue: list[str] = []

    def read(self) -> Request:
        if not self.tokens:
            raise RequestError(f"the request is empty; write e.g. {EXAMPLE}")
        phrases: tuple[Callable[[], bool], ...] = (
            self.hardware,
            self.effort,  # before dtypes: "single thread"
            self.count,
            self.shape,
            self.named_number,
            self.operator,
            self.operand_b,
            self.layout,
            self.dtypes,
            self.epilogues,
            self.noise,
        )
        while self.at < len(self.tokens):
            if not any(phrase() for phrase in phrases):
                raise self.not_understood(self.tokens[self.at])
        return self.finish()

    # -- phrases: each takes its tokens and returns True, or touches nothing and returns False --------------------

    def hardware(self) -> bool:
        start = self.at
        if self.word() in ("hardware", "profile", "target") and self.word(1) in ("=", ":"):
            self.at += 2
        elif not self.take("on", "for") and (self.word() not in THIS or self.word(1) not in HOST):
            return False
        if self.number() is not None or self.word() in ("a", "single"):  # "on 2 cores", "on a single thread"
            return self.at > start
        if self.take(*THIS) and self.word() not in HOST:
            raise self.not_understood_here(f'write "{self.since(start)} CPU", or "on" and a profile\'s name', HOST)
        words, token = self.word(), self.tokens[self.at] if self.at < len(self.tokens) else None
        if token is None:
            raise RequestError(f'"{self.since(start)}" ends without a machine; write "on this CPU" or "on zen5"')
        if words in HOST:
            self.at += 1
            self.say("hardware", "host", self.since(start))
        elif token.kind == "word" and words not in ALL_WORDS:
            self.at += 1
            self.take("cpu", "machine", "profile")
            self.say("hardware", words, self.since(start))
        elif self.tokens[start].word != "for":
            raise RequestError(f'"{self.since(start)} {token.text}" names no machine; write "on this CPU" or "on zen5"')
        return True

    def operator(self) -> bool:
        start = self.at
        if self.take("batched"):
            self.say("batched", True, "batched")
        if self.word() == "matrix":
            self.at += 1
            self.take("matrix")
            if not self.take("multiply", "multiplication", "product", "mul"):
                raise self.not_understood_here('write "matmul"', ("multiply", "multiplication", "product"))
            self.say("operator", "matmul", self.since(start))
            return True
        if self.word() not in OPERATOR_WORDS:
            return self.at > start
        name = self.word()
        self.at += 1
        self.say("operator", "matmul", name)
        if name == "bmm":
            self.say("batched", True, name)
        elif name in ("gemv", "sgemv", "matvec"):
            self.say("gemv", True, name)
        if name in ("sgemm", "sgemv"):
            self.say("operands", ("float32", "float32"), name)
        return True

    def operand_b(self) -> bool:
        start, named = self.at, self.word() == "b"
        ahead = (2 if self.word(1) in ("is", "=") else 1) if named else 0
        if self.word(ahead) in CONSTANT or self.word(ahead) in VARIABLE:
            constant = self.word(ahead) in CONSTANT
            self.at += ahead + 1
            if not named:
                self.take("b", "w", *WEIGHTS)
            self.say("constant_b", constant, self.since(start))
            return True
        if not named and self.take(*WEIGHTS):
            self.say("constant_b", True, self.since(start))
            return True
        return False

    def layout(self) -> bool:
        start = self.at
        if self.word() in LAYOUTS:
            self.at += 1
            self.take("layout")
            for name, flag in zip(("transpose_a", "transpose_b"), LAYOUTS[self.tokens[start].word], strict=True):
                self.say(name, flag, self.since(start))
            return True
        if self.take(*TRANSPOSED):
            operands = self._operands()
            if not operands:
                raise self.not_understood_here('say which: "A transposed", "B transposed"', ("a", "b", "both"))
        else:
            operands = self._operands()
            self.take("is", "are")
            if not operands or not (self.take(*TRANSPOSED) or self._superscript_t()):
                self.at = start
                return False
        for operand in operands:
            self.say(f"transpose_{operand}", True, self.since(start))
        return True

    def _operands(self) -> str:
        if self.take("both"):
            return "ab"
        found = ""
        while self.word() in ("a", "b") and self.word() not in found:
            found += self.word()
            self.at += 1
            if self.word() in JOINING and self.word(1) in ("a", "b"):
                self.at += 1
        return found

    def _superscript_t(self) -> bool:
        if self.word() == "^" and self.word(1) == "t":
            self.at += 2
            return True
        return False

    def dtypes(self) -> bool:
        start = self.at
        if self.take("->", "to", "output", "out"):
            self.take("=", ":")
            if self.at < len(self.tokens) and dtypes_of(self.word()) is None:
                self.refuse_dtype()
                if self.tokens[start].word == "to":
                    raise self.not_understood(self.tokens[start])
            result = dtypes_of(self.word())
            if result is None or len(result) != 1:
                advice = f'after "{self.since(start)}" write f32, bf16 or s32'
                raise self.not_understood_here(advice, ("f32", "bf16", "s32"))
            self.at += 1
            self.say("out_dtype", result[0], self.since(start))
            return True
        self.refuse_dtype()
        found = dtypes_of(self.word())
        if found is None:
            return False
        self.at += 1
        if len(found) == 1 and self.take(*RESULT):
            self.say("out_dtype", found[0], self.since(start))
            return True
        if len(found) == 1 and self.word() in MULTIPLY:
            self.at += 1
            self.refuse_dtype()
            other = dtypes_of(self.word())
            if other is None or len(other) != 1:
                advice = f'after "{self.since(start)}" write the dtype of B, e.g. s8'
                raise self.not_understood_here(advice, ("s8", "bf16"))
            self.at += 1
            found += other
        words = self.since(start)
        if found == ("int32",):
            raise RequestError(f'"{words}" is a result type only; operands can be {SUPPORTED}')
        if found == ("uint8",):
            raise RequestError(f'"{words}" does not say what B is; write u8s8 for uint8 x int8')
        operands = found[:2] if len(found) > 1 else found * 2
        if operands not in RESULTS:
            raise RequestError(f'"{words}": {operands[0]} x {operands[1]} is not supported; supported: {SUPPORTED}')
        self.say("operands", operands, words)
        if len(found) == 3:
            self.say("out_dtype", found[2], words)
        return True

    def refuse_dtype(self) -> None:
        """Raise when the next word is a dtype that exists, but not here."""
        if self.word() in UNSUPPORTED_DTYPES:
            raise RequestError(f'"{self.tokens[self.at].text}" is not supported; supported: {SUPPORTED}')

    def epilogues(self) -> bool:
        if self.word() in OTHER_EPILOGUES:
            raise RequestError(f'"{self.tokens[self.at].text}" is not an epilogue I can make yet; known: bias, relu')
        name = EPILOGUE_WORDS.get(self.word())
        if name is None:
            return False
        self.at += 1
        if name not in self.epilogue:
            self.epilogue.append(name)
        return True

    def effort(self) -> bool:
        """``single thread``, ``no tuning``, ``untuned``."""
        start = self.at
        if self.word() in ("single", "one") and COUNTS.get(self.word(1)) == "threads":
            self.at += 2
            self.say("threads", 1, self.since(start))
        elif self.take("single-threaded", "single-thread"):
            self.say("threads", 1, self.since(start))
        elif self.word() in NONE and self.word(1) in ("tuning", "trials", "measuring", "search"):
            self.at += 2
            self.say("trials", 0, self.since(start))
        elif self.take("untuned"):
            self.say("trials", 0, self.since(start))
        else:
            return False
        return True

    def noise(self) -> bool:
        return self.take(*NOISE)

    # -- the end ------------------------------------------------------------------------------------------------

    def value(self, what: str, default: Any = None) -> Any:
        return self.said[what][0] if what in self.said else default

    def finish(self) -> Request:
        operator = self.value("operator")
        if operator is None:
            raise RequestError(f"no operator is named; known: {', '.join(OPERATORS)}; write e.g. {EXAMPLE}")
        if self.value("gemv"):
            self.say("m", 1, f"{self.said['gemv'][1]} (M=1)")
            if "pair" in self.said:
                for name, value in zip(("k", "n"), self.said["pair"][0], strict=True):
                    self.say(name, value, self.said["pair"][1])
        elif "pair" in self.said:
            raise RequestError(f'"{self.said["pair"][1]}" gives two sizes; M, N and K are needed, e.g. 64x64x64')
        missing = [name.upper() for name in DIMENSIONS if name not in self.said]
        if missing:
            example = " ".join(f"{name}=64" for name in missing)
            raise RequestError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; add {example}")
        if self.value("batched") and "batch" not in self.said:
            raise RequestError(f'"{self.said["batched"][1]}" needs a batch; add e.g. batch=12')
        operands = self.value("operands", ("float32", "float32"))
        return validate(
            Request(
                operator=operator,
                m=self.value("m"),
                n=self.value("n"),
                k=self.value("k"),
                batch=self.value("batch", 1),
                a_dtype=operands[0],
                b_dtype=operands[1],
                out_dtype=self.value("out_dtype", RESULTS[operands][0]),
                transpose_a=self.value("transpose_a", False),
                transpose_b=self.value("transpose_b", False),
                constant_b=self.value("constant_b", False),
                epilogue=tuple(self.epilogue),
                threads=self.value("threads"),
                trials=self.value("trials"),
                hardware=self.value("hardware", "host"),
            )
        )
