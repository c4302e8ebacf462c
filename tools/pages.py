"""How the pages of the house look, in numbers:  python tools/pages.py [CHECKOUT] [--types]

Counts the product's modules (not tests, bench, tools): lines and their width, functions and their
length, parameters and complexity (radon's ranks), comprehensions, imports inside functions.
`tests/test_layout.py` holds most of them to a limit.
"""

import argparse
import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "base",
    "cache_specs",
    "extract",
    "exchange",
    "upkeep",
    "train",
    "predict",
    "report",
    "coview",
)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def pages(root: Path = ROOT) -> list[Path]:
    """The product's modules, in order."""
    return sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            yield node


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    last = function.end_lineno or function.lineno
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    told = (first.end_lineno or first.lineno) - first.lineno + 1 if documented else 0
    return last - function.lineno + 1 - told


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """All but self and cls."""
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(one.arg not in ("self", "cls") for one in given)


def nested_conditionals(tree: ast.AST) -> list[int]:
    """The lines of conditional expressions that hold another one."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inner = (child for part in ast.iter_child_nodes(node) for child in ast.walk(part))
            if any(isinstance(child, ast.IfExp) for child in inner):
                found.append(node.lineno)
    return found


def comprehensions(tree: ast.AST) -> int:
    return sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))


def inner_imports(tree: ast.AST) -> int:
    """Import statements inside functions."""
    found = set()
    for function in functions(tree):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found.add(node.lineno)
    return len(found)


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def ranks(files: list[Path]) -> dict[str, int]:
    """How many functions and methods have each of radon's ranks of complexity, A to F."""
    from radon.complexity import cc_rank
    from radon.visitors import ComplexityVisitor

    found = dict.fromkeys("ABCDEF", 0)
    for path in files:
        visitor = ComplexityVisitor.from_code(path.read_text(encoding="utf-8"))
        methods = [method for one in visitor.classes for method in one.methods]
        for block in [*visitor.functions, *methods]:
            found[cc_rank(block.complexity)] += 1
    return found


def measure(root: Path) -> dict[str, object]:
    files = pages(root)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    every = [function for tree in trees for function in functions(tree)]
    widths = [len(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    filled = [width for width in widths if width]
    rank = ranks(files)
    return {
        "modules": len(files),
        "lines": len(widths),
        "characters": sum(widths) + len(widths),
        "width, 50th / 95th / 99th percentile": " / ".join(
            str(percentile(filled, share)) for share in (0.5, 0.95, 0.99)
        ),
        "lines wider than 100": sum(width > 100 for width in widths),
        "functions": len(every),
        "functions longer than 60 lines": sum(length(one) > 60 for one in every),
        "functions of more than 7 parameters": sum(parameters(one) > 7 for one in every),
        "most parameters": max(map(parameters, every)),
        "complexity, ranks A to F": " ".join(f"{name} {count}" for name, count in rank.items()),
        "rank C or worse": sum(rank[name] for name in "CDEF"),
        "nested conditional expressions": sum(len(nested_conditionals(tree)) for tree in trees),
        "comprehensions per 100 lines": round(
            100 * sum(map(comprehensions, trees)) / len(widths), 2
        ),
        "imports inside functions": sum(map(inner_imports, trees)),
    }


def type_errors(root: Path) -> str:
    """The last line of the type checker: how many errors there are."""
    program = Path(sys.executable).with_name("pyrefly")
    done = subprocess.run([program, "check"], cwd=root, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    return lines[-1].strip() if lines else "nothing was said"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--types", action="store_true", help="also check the types")
    given = parser.parse_args()
    found = measure(given.checkout)
    if given.types:
        found["types"] = type_errors(given.checkout)
    for name, value in found.items():
        print(f"{name:42}{value}")


if __name__ == "__main__":
    main()
