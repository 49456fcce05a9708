"""What source text from a model may say, before any of it runs: an allow-list over its syntax tree.

The list is of what families and rules need; everything else is refused, with the line and what to write instead. It is
the first of several walls: what passes runs in a worker without network, keys or files of ours, and what comes out of
it is checked in another.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qimeng_tvm.check.llvm_text import allowed_intrinsic, defined_functions, llvm_findings

#: Limits on what is parsed at all.
MAX_BYTES, MAX_NODES, MAX_DEPTH, MAX_INTEGER = 40_000, 12_000, 60, 1 << 32

_BUILTINS = frozenset(
    "abs all any bool dict divmod enumerate float frozenset int isinstance len list max min next property range "
    "reversed round set sorted str sum super tuple zip True False None staticmethod classmethod".split()
)
#: Methods of plain Python values; ``format`` is missing because a format string can reach any attribute.
_METHODS = frozenset("append extend items keys values get join index count removeprefix startswith endswith".split())
_BUFFER = frozenset("vload vstore data elem_offset strides shape dtype access_ptr same_as scope".split())
_STATEMENTS = (
    ast.Module, ast.Expr, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Return, ast.Assign,
    ast.AnnAssign, ast.AugAssign, ast.For, ast.If, ast.With, ast.Pass, ast.Break, ast.Continue, ast.Assert,
)  # fmt: skip
_INSTEAD = {
    ast.While: "use a for loop over a range",
    ast.Try: "say what is legal by if, and let errors be errors",
    ast.Raise: "leave out the check: the caller passes legal parameters",
    ast.Global: "pass values as arguments",
    ast.Nonlocal: "pass values as arguments",
    ast.Delete: "leave it out",
    ast.AsyncFunctionDef: "write an ordinary function",
    ast.AsyncFor: "write an ordinary loop",
    ast.AsyncWith: "write an ordinary with",
}
#: What leads out of TensorIR: only with a literal name.
_DOORS = frozenset("call_llvm_intrin call_llvm_pure_intrin call_extern call_pure_extern attr".split())
_EXPRESSIONS_REFUSED = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)


@dataclass(frozen=True)
class Policy:
    """What one kind of source may import and reach.

    Attributes
    ----------
    modules : mapping
        Module to the names that may be taken from it; an empty set: any public name.
    reach : mapping
        Imported name (``T``) to the attributes it may be asked for.
    attributes : frozenset of str
        Attributes that any other value may be asked for.
    llvm : frozenset of str
        LLVM intrinsics that may be called, by name; ``llvm.x86.*`` stands for all that begin so.
    classes : bool
        Whether it may define classes.
    asm : frozenset of str
        Instructions that its LLVM text may hold as inline assembly.
    """

    modules: Mapping[str, frozenset[str]]
    reach: Mapping[str, frozenset[str]]
    attributes: frozenset[str]
    llvm: frozenset[str]
    classes: bool = False
    asm: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finding:
    """Something that may not stand in the source.

    Attributes
    ----------
    line : int
        Counted from 1; 0 for the text as a whole.
    text : str
        What, and what to write instead.
    """

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


def check_source(source: str, policy: Policy) -> tuple[Finding, ...]:
    """Return what may not stand in the source; empty when all may."""
    if len(source.encode()) > MAX_BYTES:
        return (Finding(0, f"the source has {len(source.encode())} bytes; {MAX_BYTES} are the most"),)
    if "\0" in source:
        return (Finding(0, "the source holds a zero byte"),)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return (Finding(error.lineno or 0, f"not Python: {error.msg}"),)
    except (RecursionError, MemoryError, ValueError) as error:
        return (Finding(0, f"not Python that can be read ({type(error).__name__})"),)
    depth, nodes = _size(tree)
    if depth > MAX_DEPTH or nodes > MAX_NODES:
        return (Finding(0, f"too deep or too long ({depth} levels, {nodes} nodes; at most {MAX_DEPTH}, {MAX_NODES})"),)
    findings = tuple(_Reader(policy, tree).findings())
    return tuple(sorted(dict.fromkeys(findings), key=lambda f: f.line))


def _size(tree: ast.AST) -> tuple[int, int]:
    depth, nodes, level = 0, 0, [tree]
    while level:
        depth, nodes = depth + 1, nodes + len(level)
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth, nodes


class _Reader:
    """One pass over a tree."""

    def __init__(self, policy: Policy, tree: ast.Module) -> None:
        self.policy, self.tree = policy, tree
        self.imported: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                self.imported |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        self.bound = set(self.imported) | _BUILTINS | set(_bound(tree))
        self.called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        self.own = {name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name in _members(node)}
        self.constants = _constants(tree)

    def findings(self) -> Iterator[Finding]:
        for node in ast.walk(self.tree):
            line = getattr(node, "lineno", 0)
            for text in self._node(node):
                yield Finding(line, text)
        for statement in self.tree.body:
            if not isinstance(statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign,
                                          ast.AnnAssign)) and not _is_text(statement):  # fmt: skip
                yield Finding(statement.lineno, "only imports, constants, functions and classes stand at the top level")

    def _node(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS):
            what = type(node).__name__.lower()
            yield f"{what} is not allowed: {_INSTEAD.get(type(node), 'leave it out')}"
        elif isinstance(node, _EXPRESSIONS_REFUSED):
            yield f"{type(node).__name__.lower()} is not allowed: write it as plain statements"
        elif isinstance(node, ast.Import):
            yield f"import {node.names[0].name} is not allowed: import names with from, out of {self._modules()}"
        elif isinstance(node, ast.ImportFrom):
            yield from self._import(node)
        elif isinstance(node, ast.Attribute):
            yield from self._attribute(node)
        elif isinstance(node, ast.Name):
            yield from self._name(node)
        elif isinstance(node, ast.ClassDef) and not self.policy.classes:
            yield "a class is not allowed: write functions"
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield from self._binds(node.name)
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield from self._binds(node.arg or "", argument=True)
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)) and not _small(node.right):
            yield "powers and shifts take a small constant on their right"

    def _modules(self) -> str:
        return ", ".join(self.policy.modules)

    def _import(self, node: ast.ImportFrom) -> Iterator[str]:
        allowed = self.policy.modules.get(node.module or "")
        if node.level or allowed is None:
            yield f"from {'.' * node.level}{node.module or ''} is not allowed: import only from {self._modules()}"
            return
        for alias in node.names:
            if alias.asname and (hasattr(builtins, alias.asname) or _dunder(alias.asname)):
                yield f"{alias.asname} is Python's own: take another name"
            if alias.name == "*" or alias.name.startswith("_") or (allowed and alias.name not in allowed):
                yield f"{alias.name} is not for import from {node.module}; there are {', '.join(sorted(allowed))}"

    def _attribute(self, node: ast.Attribute) -> Iterator[str]:
        name = node.attr
        if name.startswith("_"):
            yield f"{name} is private"
            return
        if name in _DOORS and id(node) not in self.called:
            yield f"{name} may only be called, where its arguments can be read"
        if isinstance(node.value, ast.Name) and node.value.id in self.policy.reach:
            if self.imported.get(node.value.id) and name not in self.policy.reach[node.value.id]:
                yield f"{node.value.id}.{name} is not allowed"
            return
        # A namespace under another name, or one inside it, is not looked through.
        if name not in self.policy.attributes | _METHODS | _BUFFER | self.own:
            yield f".{name} is not allowed"

    def _binds(self, name: str, argument: bool = False) -> Iterator[str]:
        """Check a name that is given a meaning: names are looked up without scopes, so none may hide another."""
        if _dunder(name):
            yield f"{name} may not be defined"
        elif hasattr(builtins, name) and not (argument and name in _BUILTINS):
            yield f"{name} is Python's own: take another name"
        elif name in self.policy.reach or name in self.imported:
            yield f"{name} may not be given another meaning"

    def _name(self, node: ast.Name) -> Iterator[str]:
        if _dunder(node.id):
            yield f"{node.id} is not allowed"
        elif isinstance(node.ctx, ast.Store):
            yield from self._binds(node.id)
        elif isinstance(node.ctx, ast.Load) and node.id not in self.bound:
            known = hasattr(builtins, node.id)
            yield f"{node.id} is {'not allowed' if known else 'not defined'}"

    def _constant(self, node: ast.Constant) -> Iterator[str]:
        value = node.value
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_INTEGER:
            yield f"the number {str(value)[:20]} is too large"
        if isinstance(value, bytes):
            yield "bytes are not allowed"
        if isinstance(value, str) and ("__" in value or "\x00" in value):
            yield "a text with double underscores is not allowed"

    def _call(self, node: ast.Call) -> Iterator[str]:
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in _DOORS and any(isinstance(a, ast.Starred) for a in node.args[:3]):
            yield f"the first arguments of {name} must be written out"
        if name in ("call_llvm_intrin", "call_llvm_pure_intrin"):
            yield from self._intrinsic(node)
        elif name in ("call_extern", "call_pure_extern"):
            yield from self._extern(node)
        elif name == "attr":
            yield from self._attr(node)

    def _text(self, node: ast.expr | None) -> str | None:
        """A text that is known without running anything."""
        if isinstance(node, ast.Name):
            return self.constants.get(node.id)
        return _literal(node, self.constants)

    def _intrinsic(self, node: ast.Call) -> Iterator[str]:
        name = self._text(node.args[1]) if len(node.args) > 1 else None
        if name is None:
            yield "the name of an LLVM intrinsic must be a literal text, the second argument"
        elif not allowed_intrinsic(name, self.policy.llvm):
            yield f"{name} is not among the intrinsics of this task: {', '.join(sorted(self.policy.llvm))}"

    def _extern(self, node: ast.Call) -> Iterator[str]:
        name = self._text(node.args[1]) if len(node.args) > 1 else None
        defined = {f for text in self._llvm_texts() for f in defined_functions(text)}
        if name is None or name not in defined:
            yield f"call_extern calls {name or 'something'} that no LLVM text of this source defines"

    def _attr(self, node: ast.Call) -> Iterator[str]:
        key = self._text(node.args[1]) if len(node.args) > 1 else None
        if key != "pragma_import_llvm":
            yield f"the attribute {key} is not allowed"
            return
        text = self._text(node.args[2]) if len(node.args) > 2 else None
        if text is None:
            yield "the LLVM text must be a constant of the module, put together from literal texts"
            return
        yield from (f"in the LLVM text, {found}" for found in llvm_findings(text, self.policy.llvm, self.policy.asm))

    def _llvm_texts(self) -> Iterator[str]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "attr" and len(node.args) > 2:
                yield self._text(node.args[2]) or ""


def _dunder(name: str) -> bool:
    return name.startswith("__") or name.endswith("__")


def _small(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= 40


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _bound(tree: ast.AST) -> Iterator[str]:
    """Names that the source gives a meaning itself, anywhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Attributes that a class of the source gives its objects; those of frames and code are nobody's."""
    for statement in node.body:
        target = statement.target if isinstance(statement, ast.AnnAssign) else None
        name = statement.name if isinstance(statement, ast.FunctionDef) else getattr(target, "id", "")
        if name and not name.startswith(("gi_", "f_", "tb_", "cr_", "ag_", "co_", "func_")):
            yield name


def _constants(tree: ast.Module) -> dict[str, str]:
    """Module constants that are texts, as far as literals tell them."""
    known: dict[str, str] = {}
    times: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            times[node.id] = times.get(node.id, 0) + 1
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, value = statement.targets[0], _literal(statement.value, known)
            if isinstance(target, ast.Name) and value is not None and times.get(target.id) == 1:
                known[target.id] = value
    return known


def _literal(node: ast.expr | None, known: Mapping[str, str]) -> str | None:
    """The text (or number, as text) that an expression of literals and known constants has."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)):
        return str(node.value)
    if isinstance(node, ast.Name):
        return known.get(node.id)
    parts: list[str | None] = []
    if isinstance(node, ast.JoinedStr):
        for part in node.values:
            plain = isinstance(part, ast.FormattedValue) and part.format_spec is None and part.conversion == -1
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            parts.append(_literal(inner, known) if plain or isinstance(part, ast.Constant) else None)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [_literal(node.left, known), _literal(node.right, known)]
    else:
        return None
    return None if any(p is None for p in parts) else "".join(p for p in parts if p is not None)
