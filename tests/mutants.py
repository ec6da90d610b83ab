"""Do the tests bite? Small faults are planted one at a time, and the tests of the file must notice.

    python tests/mutants.py                    # every part, 40 faults each, chosen by the seed
    python tests/mutants.py guards --faults 999

Faults: a comparison loosened, tightened or turned round; + for -, * for /; `and` for `or`; a condition negated; a
number moved; min for max, all for any. Prints one JSON object: for each part the share noticed, and the survivors by
line. A fault that changes nothing that can be seen is no fault of the tests: look at the survivors. The checkout is not
touched: faults are planted in a copy of src/. Not part of the suite.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/crystalforge"
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "guards": (
        ["rewards/guards.py", "crystal/geometry.py"],
        ["unit/rewards/test_guards.py", "unit/crystal/test_geometry.py"],
    ),
    "valid": (["model/sampling/valid.py"], ["unit/model/sampling/test_valid.py"]),
    "thermo": (["thermo/hull.py", "thermo/facets.py", "thermo/corrections.py", "thermo/entries.py"], ["unit/thermo"]),
    "promote": (
        ["platform/promote.py"],
        ["unit/evaluation/metrics/test_objective.py", "unit/integrations/mlflow/test_tracking.py"],
    ),
    "rl": (["rl/losses.py", "rl/advantage.py", "rl/algorithms.py"], ["unit/rl/test_losses_exact.py"]),
    "statistics": (["evaluation/metrics/statistics.py"], ["unit/evaluation/metrics"]),
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "all": "any", "any": "all", "minimum": "maximum", "maximum": "minimum"}


def faults(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Line, description and the tree with the fault; annotations and docstrings are left alone."""
    left_alone = {id(part) for node in ast.walk(tree) for part in _annotations(node)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in left_alone:
            continue
        for words, change in _changes(node):
            mutant = copy.deepcopy(tree)
            change(list(ast.walk(mutant))[number])
            yield getattr(node, "lineno", 0), words, mutant


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        found = getattr(node, name, None)
        if found is not None:
            yield from ast.walk(found)


def _changes(node: ast.AST) -> Iterator[tuple[str, object]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]
        yield f"{ast.unparse(node)}: {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        operator = OPERATORS[type(node.op)]
        yield f"{ast.unparse(node)}: {operator.__name__}", lambda n: setattr(n, "op", operator())
    elif isinstance(node, ast.BoolOp):
        boolean = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{ast.unparse(node)}: {boolean.__name__}", lambda n: setattr(n, "op", boolean())
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield (
            f"not ({ast.unparse(node.test)})",
            lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test, lineno=1, col_offset=0)),
        )
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield f"{node.value} + 1", lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{ast.unparse(node)}: {NAMES[node.attr]}", lambda n: setattr(n, "attr", NAMES[n.attr])
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield f"{node.id}: {NAMES[node.id]}", lambda n: setattr(n, "id", NAMES[n.id])


def survives(copied: Path, file: str, mutant: str, tests: list[str], seconds: float) -> bool:
    """Whether the tests pass with `mutant` in place of `file`; hanging for longer than `seconds` is being noticed."""
    target = copied / PACKAGE / file
    original = target.read_text()
    target.write_text(mutant)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *(f"tests/{test}" for test in tests),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copied / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    try:
        done = subprocess.run(command, cwd=copied, env=environment, capture_output=True, timeout=seconds)
        return done.returncode == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        target.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--faults", type=int, default=40, help="planted in each part at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300, help="that the tests of one fault may take")
    options = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "params.yaml"):
            shutil.copy(ROOT / name, copied / name)
        for part in options.parts or PARTS:
            files, tests = PARTS[part]
            assert survives(copied, files[0], (copied / PACKAGE / files[0]).read_text(), tests, 1e4), (
                f"{part}: tests fail"
            )
            planted = [
                (file, line, words, ast.unparse(ast.fix_missing_locations(mutant)))
                for file in files
                for line, words, mutant in faults(ast.parse((copied / PACKAGE / file).read_text()))
            ]
            chosen = random.Random(options.seed).sample(planted, min(options.faults, len(planted)))
            alive = []
            for number, (file, line, words, text) in enumerate(chosen, start=1):
                lives = survives(copied, file, text, tests, options.seconds)
                print(part, number, "SURVIVES" if lives else "noticed", f"{file}:{line} {words}", file=sys.stderr)
                if lives:
                    alive.append(f"{file}:{line} {words}")
            report[part] = {
                "faults": len(chosen),
                "of": len(planted),
                "noticed": round(1 - len(alive) / len(chosen), 3),
                "survivors": sorted(alive),
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
