"""The package import rules of the design: who may import whom, and one file for each foreign library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ckks", "compiler", "keys", "he_serve")
ALLOWED = {
    "ckks": {"ckks"},
    "compiler": {"ckks", "compiler"},
    "keys": {"ckks", "keys"},
    "he_serve": set(PACKAGES),
}
REPOSITORY_ONLY = {"models", "bench", "tests"}  # used from a checkout, absent from the wheel

SOLE_IMPORTER = {
    "onnx": "compiler/onnx_import.py",
    "cupy": "ckks/backends/gpu.py",
    "tenseal": "keys/seal.py",
    "openfhe": "keys/openfhe.py",
    "fastapi": "he_serve/app.py",
    "ray": "he_serve/ray_executor.py",
    "httpx": "he_serve/client.py",
}
# What a server runs: the web application, and the programs that it starts as processes of their own.
SERVER_ROOTS = (
    "he_serve/app.py",
    "he_serve/serve.py",
    "he_serve/worker.py",
    "he_serve/validate.py",
    "he_serve/ray_executor.py",
)
PACKAGE_FILE = "he_serve/__init__.py"  # hands out the client on demand; a server must not ask for it
NEVER_ON_A_SERVER = ("keys", "compiler", "onnx", "tenseal", "openfhe")
LAZY_ON_A_SERVER = ("cupy", "ray")

FILES = [p.relative_to(ROOT).as_posix() for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]


def imports(tree: ast.AST, file: str) -> Iterator[str]:
    """Every module that a file names in an import statement, at any depth, as an absolute dotted name."""
    package = file.removesuffix("/__init__.py").removesuffix(".py").split("/")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_roots(file: str) -> set[str]:
    return {name.split(".")[0] for name in imports(ast.parse((ROOT / file).read_text()), file)}


def server_files() -> set[str]:
    """The files of he_serve that a server can reach by any import, lazy ones included."""
    known, reached = set(FILES), set[str]()
    todo = [file for file in SERVER_ROOTS if file in known]
    while todo:
        file = todo.pop()
        if file in reached:
            continue
        reached.add(file)
        for name in imports(ast.parse((ROOT / file).read_text()), file):
            path = name.replace(".", "/")
            todo += [
                p for p in (f"{path}.py", f"{path}/__init__.py") if p in known and p.startswith("he_serve/")
            ]
        todo = [p for p in todo if p != PACKAGE_FILE]
    return reached


def test_the_packages_are_where_the_rules_look() -> None:
    assert {file.split("/")[0] for file in FILES} == set(PACKAGES)
    assert "he_serve/app.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_siblings(file: str) -> None:
    package = file.split("/")[0]
    roots = imported_roots(file)
    assert not roots & set(PACKAGES) - ALLOWED[package]
    assert not roots & REPOSITORY_ONLY


@pytest.mark.parametrize("file", FILES)
def test_each_foreign_library_has_one_importer(file: str) -> None:
    strangers = {name for name in imported_roots(file) if SOLE_IMPORTER.get(name, file) != file}
    assert not strangers


def test_server_files_reach_no_secret_side_and_no_compiler() -> None:
    files = server_files()
    assert "he_serve/app.py" in files
    for file in sorted(files):
        assert not imported_roots(file) & set(NEVER_ON_A_SERVER), file
        names = set(imports(ast.parse((ROOT / file).read_text()), file))
        assert not names & {"he_serve.Client", "he_serve.Prediction", "he_serve.client"}, file


def test_the_client_does_not_import_the_compiler() -> None:
    assert "compiler" not in imported_roots("he_serve/client.py")


def loaded_by(module: str, suspects: set[str]) -> set[str]:
    """Which of `suspects` a fresh interpreter has loaded after importing `module`."""
    code = f"import sys, {module}; print(*(set(sys.modules) & {suspects!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["app", "serve", "worker", "validate"])
def test_importing_the_server_loads_no_secret_side(module: str) -> None:
    assert loaded_by(f"he_serve.{module}", {*NEVER_ON_A_SERVER, *LAZY_ON_A_SERVER}) == set()


def test_the_command_line_loads_only_what_a_subcommand_needs() -> None:
    assert loaded_by("he_serve.cli", {"keys", "compiler", "onnxruntime", *SOLE_IMPORTER}) == set()


def test_the_load_check_can_fail() -> None:
    assert loaded_by("json", {"json", "tenseal"}) == {"json"}


def test_the_import_walker_sees_lazy_and_relative_imports() -> None:
    tree = ast.parse("def f():\n    import onnx.checker\nfrom . import seal\nfrom ..ckks import errors\n")
    found = set(imports(tree, "keys/store.py"))
    assert {"onnx.checker", "keys.seal", "ckks.errors"} <= found
