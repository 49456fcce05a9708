"""Have a model read a machine out of its manual; nothing is taken that the manual cannot be quoted for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from qimeng_tvm.errors import GenerateError, HardwareError, UsageError
from qimeng_tvm.files import write_atomic
from qimeng_tvm.generate.ask import Question, Refused, ask
from qimeng_tvm.generate.profile_answer import REQUIRED, Fact, ProfileAnswer, facts
from qimeng_tvm.generate.quotes import numbers, plain
from qimeng_tvm.hardware.host import llvm_cores, near
from qimeng_tvm.hardware.manual import Manual
from qimeng_tvm.hardware.model import Hardware
from qimeng_tvm.hardware.profiles import HOST, ProfileFile, key_of, own_folder, read_profile, shipped_names
from qimeng_tvm.hardware.tables import known_features
from qimeng_tvm.llm.budget import Budget, Metered
from qimeng_tvm.llm.messages import Client
from qimeng_tvm.llm.prompts.hardware import hardware_prompt
from qimeng_tvm.llm.transcript import Transcript

#: Operators are built for Linux: no manual says so.
_TRIPLES: Mapping[str, str] = MappingProxyType(
    {
        "x86": "x86_64-unknown-linux-gnu",
        "arm": "aarch64-unknown-linux-gnu",
        "riscv": "riscv64-unknown-linux-gnu",
    }
)
#: Words of the shortest quote: with fewer, any number is somewhere in the text.
_WORDS = 3
_UNITS = {"count": "", "level": "", "bits": " bits", "bytes": " bytes", "kib": " KiB", "gib": " GiB"}
_CACHE_FIELDS = ("level", "kib", "line", "ways", "shared_by")


@dataclass(frozen=True)
class Described:
    """A machine out of a manual.

    Attributes
    ----------
    path, transcript : Path
        The profile, and the conversation behind it.
    hardware : Hardware
        As the profile loads.
    """

    path: Path
    transcript: Path
    hardware: Hardware


@dataclass(frozen=True)
class Profile:
    """A checked answer.

    Attributes
    ----------
    file : ProfileFile
        The profile.
    quotes : Mapping[str, str]
        What the manual says, by field: ``cores``, ``features.avx2``, ``caches.1.kib``.
    """

    file: ProfileFile
    quotes: Mapping[str, str]


def describe_manual(
    manuals: Sequence[Manual],
    client: Client,
    *,
    name: str | None = None,
    out: Path | None = None,
    rounds: int = 4,
    budget: Budget | None = None,
    restart: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Described:
    """Have a model describe a machine, check it, and write its profile.

    Parameters
    ----------
    manuals : sequence of Manual
        Texts about the machine.
    client : Client
        Who answers.
    name : str, optional
        Of the machine; by default what the text calls it.
    out : Path, optional
        Of the profile; by default among the user's own, where ``Hardware.load`` finds it by ``name``, or else by the
        first text's.
    rounds : int
        Answers in a row, at most.
    budget : Budget, optional
        What it may spend.
    restart : bool
        Begin again though there is a transcript of an earlier run.
    say : callable
        Told of every round.

    Raises
    ------
    HardwareError
        If the text does not say what a profile must have: the fields are named.
    GenerateError
        If no answer passed the checks.
    """
    path = out or own_folder() / f"{_own_key(name, manuals)}.toml"
    if path.suffix != ".toml":
        raise UsageError(f"a profile is a .toml file: give --out {path}.toml")
    transcript = path.with_suffix(".transcript.json")
    if restart:
        transcript.unlink(missing_ok=True)
    metered = Metered(client, budget or Budget(), transcript.with_suffix(".log"))
    asked = ask(hardware_question(manuals, name), metered, rounds=rounds, path=transcript, say=say)
    text = profile_text(asked.value, asked.transcript, [m.name for m in manuals])
    hardware = read_profile(text, str(path)).hardware()
    try:
        write_atomic(path, text)
    except OSError as error:
        raise GenerateError(f"cannot write {path}: {error.strerror or error}; give another file with --out") from error
    return Described(path, transcript, hardware)


def hardware_question(manuals: Sequence[Manual], name: str | None = None) -> Question[ProfileAnswer, Profile]:
    """Return what a model is asked; see :func:`describe_manual`."""
    text = plain("\n".join(m.text for m in manuals))

    def check(answer: ProfileAnswer) -> Profile:
        return check_answer(answer, text, name)

    label = f"hardware describe {name or ' '.join(m.name for m in manuals)}"
    return Question(label, hardware_prompt(manuals, name), ProfileAnswer.model_json_schema(), ProfileAnswer, check)


def check_answer(answer: ProfileAnswer, text: str, name: str | None = None) -> Profile:
    """Return the profile that an answer gives.

    Parameters
    ----------
    answer : ProfileAnswer
        What the model says.
    text : str
        The manual, by :func:`~qimeng_tvm.generate.quotes.plain`.
    name : str, optional
        The user's own name for the machine.

    Raises
    ------
    Refused
        If a quote is not in the text, does not say its value, or a name is not LLVM's.
    HardwareError
        If the text does not say what a profile must have.
    """
    found = [problem for fact in facts(answer) if (problem := _unsupported(fact, text))]
    found += _unknown_names(answer)
    absent = [f for f in REQUIRED if not getattr(answer, f) and not (f == "name" and name)]
    silent = [f for f in absent if f not in answer.missing]
    if silent:
        found.append(f"{', '.join(silent)}: left out; answer with value and quote, or name it in missing")
    if found:
        raise Refused(found)
    if absent:
        raise HardwareError(
            f"the manual does not say {', '.join(absent)}: write what you know of it into a text file, in whole "
            "sentences, and give that too (--manual FILE --manual NOTES)"
        )
    return _profile(answer, name)


def _unsupported(fact: Fact, text: str) -> str:
    """Say why a quote does not hold up its value; empty when it does."""
    quote = plain(fact.quote)
    if len(re.findall(r"\w+", quote)) < _WORDS:
        return f"{fact.field}: the quote {fact.quote!r} is too short: {_WORDS} words at least"
    if quote not in text:
        return f"{fact.field}: the quote {fact.quote[:80]!r} is not in the manual: copy it to the letter"
    if fact.kind:
        said = numbers(fact.quote, fact.kind)
        if fact.value not in said:
            told = ", ".join(f"{float(n):g}{_UNITS[fact.kind]}" for n in sorted(said)[:6]) or "no such number"
            value = f"{fact.value}{_UNITS[fact.kind]}"
            return f"{fact.field}: {value} is not what its quote says ({told}: {fact.quote[:80]!r})"
    if fact.field == "name" and plain(fact.value) not in quote:
        return f"name: {fact.value!r} is not in its quote"
    return ""


def _unknown_names(answer: ProfileAnswer) -> list[str]:
    """Say which names LLVM does not know; they are looked up when the instruction set is told."""
    if answer.isa is None:
        return []
    isa, found = answer.isa.value, []
    if answer.cpu is not None:
        cores = llvm_cores(_TRIPLES[isa])
        if answer.cpu.value not in cores:
            found.append(f"cpu: LLVM knows no {isa} core {answer.cpu.value!r}{near(answer.cpu.value, cores)}")
    known = known_features(isa)
    for i, feature in enumerate(answer.features):
        if feature.value not in known:
            found.append(
                f"features[{i}]: {feature.value!r} is not in the list of {isa}{near(feature.value, sorted(known))}"
            )
    return found


def _profile(answer: ProfileAnswer, name: str | None) -> Profile:
    isa = answer.isa.value if answer.isa is not None else ""
    values: dict[str, Any] = {"name": name, "triple": _TRIPLES[isa], "features": [], "caches": []}
    quotes: dict[str, str] = {}
    for fact in facts(answer):
        if fact.field.startswith(("features", "caches")) or (fact.field == "name" and name):
            continue
        values[fact.field], quotes[fact.field] = fact.value, fact.quote
    for feature in answer.features:
        values["features"].append(feature.value)
        quotes[f"features.{feature.value}"] = feature.quote
    for cache in sorted(answer.caches, key=lambda c: c.level.value):
        given = {f: fact for f in _CACHE_FIELDS if (fact := getattr(cache, f)) is not None}
        values["caches"].append({f: fact.value for f, fact in given.items()})
        quotes |= {f"caches.{cache.level.value}.{f}": fact.quote for f, fact in given.items()}
    try:
        return Profile(ProfileFile.model_validate(values), quotes)
    except ValidationError as error:
        raise Refused([f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in error.errors()]) from error


def profile_text(profile: Profile, transcript: Transcript, manuals: Sequence[str]) -> str:
    """Return the TOML: every value below the words that say it."""
    file, lines = profile.file, _head(transcript, manuals)
    for field in ("name", "isa", "cpu"):
        lines += _entry(field, getattr(file, field), profile.quotes.get(field))
    lines += ["# Operators are built for Linux.", f"triple = {_toml(file.triple)}"]
    for field in ("cores", "smt", "vector_bits", "vector_registers", "memory_gib"):
        if field in profile.quotes:
            lines += _entry(field, getattr(file, field), profile.quotes[field])
    lines.append("features = [")
    for feature in file.features:
        lines += ["    " + line for line in _quoted(profile.quotes[f"features.{feature}"])]
        lines.append(f"    {_toml(feature)},")
    lines.append("]")
    for cache in file.caches:
        lines += ["", "[[caches]]"]
        for field in _CACHE_FIELDS:
            quote = profile.quotes.get(f"caches.{cache.level}.{field}")
            if quote is not None:
                lines += _entry(field, getattr(cache, field), quote)
    return "\n".join(lines) + "\n"


def _head(transcript: Transcript, manuals: Sequence[str]) -> list[str]:
    rounds = len(transcript.rounds)
    return [
        _comment(f"Read out of {', '.join(manuals)}; above each value stand the words that say it."),
        _comment(
            f"author: {transcript.model}, prompt {transcript.prompt}, {rounds} {'round' if rounds == 1 else 'rounds'}"
        ),
    ]


def _entry(field: str, value: str | int, quote: str | None) -> list[str]:
    return [*(_quoted(quote) if quote is not None else ()), f"{field} = {_toml(value)}"]


def _quoted(quote: str) -> list[str]:
    return [_comment(f'"{quote}"')]


def _comment(text: str) -> str:
    """One line, whatever the text holds: nothing of it may become an entry."""
    return "# " + " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _toml(value: str | int) -> str:
    """Write a value; what JSON writes of printable text is TOML."""
    if isinstance(value, str):
        return json.dumps("".join(c if c.isprintable() else " " for c in value), ensure_ascii=False)
    return str(value)


def _own_key(name: str | None, manuals: Sequence[Manual]) -> str:
    """Return the name by which the profile will be found.

    Raises
    ------
    UsageError
        If it is not one that a profile can have.
    """
    key = key_of(name if name is not None else Path(manuals[0].name).stem)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", key):
        raise UsageError(f"a profile cannot be called {key!r}: give --name of letters, digits and _, or --out FILE")
    if key in (HOST, *shipped_names()):
        raise UsageError(f"there is a shipped profile {key}: give another --name, or --out FILE")
    return key
