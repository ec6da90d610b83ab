"""Do the tests bite? Small faults are planted one at a time, and the tests of the file must notice.

    python tests/mutants.py                    # every part, 40 faults each, chosen by the seed
    python tests/mutants.py guards --faults 999 > before.json
    python tests/mutants.py guards --again before.json    # what survived then, under the tests of now

Faults: a comparison loosened, tightened or turned round; + for -, * for /; `and` for `or`; a condition negated; a
number moved; min for max, all for any. Prints one JSON object: for each part the share noticed, and the survivors by
line. A fault that changes nothing that can be seen is no fault of the tests: look at the survivors. The checkout is not
touched: faults are planted in a copy of src/. Not part of the suite.

Libraries, package and tests are loaded once for each part, then a fork for each fault changes the code of the function
as it lies in memory. A fault elsewhere (a constant, a default) is written into the file, and a new process loads it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import inspect
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/crystalforge"
NOT_IN_MEMORY = 77
PYTEST = ("-x", "-q", "--timeout=7200", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-profile=mutants")
HEAVY = (
    "numpy", "scipy.optimize", "scipy.stats", "torch", "pyarrow.parquet", "pandas", "hypothesis", "beartype",
    "pymatgen.core", "pymatgen.analysis.phase_diagram", "pymatgen.entries.compatibility",
)  # fmt: skip
"""Libraries that are loaded once for all faults."""
READ = ("pyproject.toml", "params.yaml", "docs/results/stability-crystals.parquet")
"""Files outside src/ and tests/ that tests read."""
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "guards": (
        ["rewards/guards.py", "crystal/geometry.py"],
        ["unit/rewards/test_guards.py", "unit/crystal/test_geometry.py"],
    ),
    "valid": (["model/sampling/valid.py"], ["unit/model/sampling/test_valid.py"]),
    "thermo": (["thermo/hull.py", "thermo/facets.py", "thermo/corrections.py", "thermo/entries.py"], ["unit/thermo"]),
    "promote": (
        ["platform/promote.py"],
        ["unit/platform/test_promote.py", "unit/integrations/mlflow/test_tracking.py"],
    ),
    "rl": (
        ["rl/losses.py", "rl/advantage.py", "rl/algorithms.py"],
        ["unit/rl/test_losses_by_hand.py", "unit/rl/test_losses_exact.py"],
    ),
    "objective": (["rewards/tilted.py"], ["unit/rewards/test_tilted.py"]),
    "statistics": (["evaluation/metrics/statistics.py"], ["unit/evaluation/metrics/test_statistics.py"]),
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


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], object]]]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]
        yield f"{ast.unparse(node)}: {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        operator = OPERATORS[type(node.op)]
        yield f"{ast.unparse(node)}: {operator.__name__}", lambda n: setattr(n, "op", operator())
    elif isinstance(node, ast.BoolOp):
        boolean = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{ast.unparse(node)}: {boolean.__name__}", lambda n: setattr(n, "op", boolean())
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and ast.unparse(node.test) != "TYPE_CHECKING":
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


def planted_in_memory(original: str, mutant: str, file: str) -> bool:
    """Plant what differs between two sources into the functions of this process; False when it is not in functions."""
    old, new = (_codes(compile(text, file, "exec")) for text in (original, mutant))
    changed = {name: code for name, code in new.items() if code != old.get(name)}
    if not changed or set(new) != set(old):
        return False
    living: dict[str, list[FunctionType]] = {name: [] for name in changed}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and thing.__code__.co_filename == file:
            living.get(thing.__code__.co_qualname, []).append(thing)
    if not all(
        functions and all(f.__code__.co_freevars == changed[name].co_freevars for f in functions)
        for name, functions in living.items()
    ):
        return False
    for name, functions in living.items():
        for function in functions:
            function.__code__ = changed[name]
    return True


def _codes(module: CodeType) -> dict[str, CodeType]:
    """Functions and methods of a module by qualified name; under the empty name what is left of the module itself."""
    found = {}
    left = [module]
    while left:
        code = left.pop()
        is_function = bool(code.co_flags & inspect.CO_OPTIMIZED)
        inner = [part for part in code.co_consts if isinstance(part, CodeType)]
        if is_function:
            found[code.co_qualname] = code
        else:
            left += inner
            rest = tuple(part for part in code.co_consts if not isinstance(part, CodeType))
            found[f"<body of {code.co_qualname}>"] = code.replace(co_consts=rest)
    return found


class Planter:
    """A pytest plugin: once the tests are collected, a fork for each fault runs them, the quickest first.

    `noticed` has an answer for each fault that could be planted in memory, in `answers` as JSON at the end.
    """

    def __init__(self, source: Path, mutants: list[str], answers: Path, seconds: int) -> None:
        self.source, self.mutants, self.answers, self.seconds = source, mutants, answers, seconds
        self.took: dict[str, float] = defaultdict(float)
        self.is_first = False
        self.progress = os.dup(2)  # pytest captures the descriptor itself

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        original, file = self.source.read_text(), str(self.source)
        self.is_first = True
        if (first := _fork(self.seconds)) == 0:
            return None  # pytest goes on: in this fork the tests run as they are
        assert _ended(first) == 0, f"{file}: its tests fail as it stands, or need more than {self.seconds} s"
        self.is_first = False
        took = json.loads(self.answers.read_text())
        session.items.sort(key=lambda item: took.get(item.nodeid, 0.0))
        found: list[bool | None] = []
        for mutant in self.mutants:
            if (child := _fork(self.seconds)) == 0:
                if planted_in_memory(original, mutant, file):
                    return None
                os._exit(NOT_IN_MEMORY)
            code = _ended(child)
            found.append(None if code == NOT_IN_MEMORY else code == 0)
            os.write(self.progress, f"{len(found)}/{len(self.mutants)} of {self.source.name}: {found[-1]}\n".encode())
        self.answers.write_text(json.dumps(found))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.took[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if self.is_first:
            self.answers.write_text(json.dumps(self.took))


def survivors(copied: Path, file: str, mutants: list[str], tests: list[str], seconds: int) -> list[bool]:
    """Whether the tests pass with each mutant in place of `file`.

    Hanging, or more than `seconds` of processor time, is being noticed.
    """
    target, answers = copied / PACKAGE / file, copied / "answers.json"
    if (child := os.fork()) == 0:
        _run(copied, tests, [Planter(target, mutants, answers, seconds)])
    assert _ended(child) == 0, f"{file}: its tests could not be run"
    found = json.loads(answers.read_text())
    original = target.read_text()
    for place in [place for place, alive in enumerate(found) if alive is None]:
        target.write_text(mutants[place])
        if (child := _fork(seconds)) == 0:
            sys.dont_write_bytecode = True
            _run(copied, tests, [])
        found[place] = _ended(child) == 0
    target.write_text(original)
    return found


def _run(copied: Path, tests: list[str], plugins: list[Planter]) -> NoReturn:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1) if plugins else (0, 1, 2):
        os.dup2(nowhere, stream)
    os.chdir(copied)
    sys.path.insert(0, str(copied / "src"))
    code = 1
    with contextlib.suppress(BaseException):
        code = int(pytest.main([*PYTEST, *(f"tests/{test}" for test in tests)], plugins))
    os._exit(code)


def _fork(seconds: int) -> int:
    """As os.fork; the child leads a group of processes and has so many seconds of a processor."""
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    return child


def _ended(child: int) -> int:
    """The exit code of a child, not 0 where it was killed; what it started and left is ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return code


def _prepare() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in HEAVY:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), deadline=None
    )


def _label(file: str, line: int, words: str, _: str) -> str:
    return f"{file}:{line} {words}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--faults", type=int, default=40, help="planted in each part at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--again", type=Path, help="only the survivors of this earlier report; the source must not move"
    )
    parser.add_argument("--seconds", type=int, default=120, help="of a processor, that the tests of a fault may take")
    options = parser.parse_args()
    _prepare()
    report = {}
    earlier = json.loads(options.again.read_text()) if options.again else {}
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary)
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in READ:
            (copied / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copied / name)
        for part in options.parts or earlier or PARTS:
            files, tests = PARTS[part]
            planted = [
                (file, line, words, ast.unparse(ast.fix_missing_locations(mutant)))
                for file in files
                for line, words, mutant in faults(ast.parse((copied / PACKAGE / file).read_text()))
            ]
            if options.again:
                chosen = [fault for fault in planted if _label(*fault) in earlier[part]["survivors"]]
            else:
                chosen = random.Random(options.seed).sample(planted, min(options.faults, len(planted)))
            alive = []
            for file in files:
                here = [fault for fault in chosen if fault[0] == file]
                # What is compared and planted is written by one hand: lines and all.
                target = copied / PACKAGE / file
                target.write_text(ast.unparse(ast.parse(target.read_text())))
                lives = survivors(copied, file, [text for *_, text in here], tests, options.seconds) if here else []
                alive += [_label(*fault) for fault, live in zip(here, lives, strict=True) if live]
            report[part] = {
                "faults": len(chosen),
                "of": len(planted),
                "noticed": round(1 - len(alive) / max(len(chosen), 1), 3),
                "survivors": sorted(alive),
            }
            print(json.dumps({part: report[part]}, indent=2), file=sys.stderr)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
