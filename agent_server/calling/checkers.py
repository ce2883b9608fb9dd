"""The checkers of code that are known: when a workspace has one, how it is run on files, and what its output says.

None may change the workspace: no caches beside the code, no fixes. What they print for people is read, line by line: unlike their
JSON it can be read as far as it came.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from agent_server.workspace_config import ConfigInvalid, parse

CONFIG_BYTES = 1 << 20
"""Bytes of a configuration that are looked at: a thousand times what people write."""

MAX_PROJECTS = 4
"""Projects that a `tsconfig.json` only refers to and that are checked."""

MAX_TEXT = 1_000
"""Characters of one error that are read: it may go on over many lines."""

_PYTHON = frozenset({".py", ".pyi"})
_TYPESCRIPT = frozenset({".ts", ".tsx", ".mts", ".cts"})
_JAVASCRIPT = frozenset({".js", ".jsx", ".mjs", ".cjs"})

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RUFF = re.compile(r"(?P<path>.+?):(?P<line>\d+):(?P<column>\d+): (?P<text>.*)")
_PYRIGHT = re.compile(r"\s+(?P<path>/.+?):(?P<line>\d+):(?P<column>\d+) - (?P<kind>\w+): (?P<text>.*)")
_TSC = re.compile(r"(?P<path>\S.*?)\((?P<line>\d+),(?P<column>\d+)\): (?P<kind>\w+) (?P<text>.*)")
_ESLINT = re.compile(r"\s+(?P<line>\d+):(?P<column>\d+)\s+(?P<kind>error|warning)\s+(?P<text>.*)")


class Finding(msgspec.Struct, frozen=True, order=True):
    """One error in a file."""

    path: str
    line: int
    column: int
    text: str


class Checker(msgspec.Struct, frozen=True):
    """One checker. `configured` tells whether a folder has its configuration; `commands` gives the arguments of its runs there, on
    those of the files that it is for; `pattern` reads a line of its output. Its exit codes are 0 and those of `found`."""

    name: str
    suffixes: frozenset[str]
    configured: Callable[[Path], bool]
    commands: Callable[[Path, Sequence[Path]], Sequence[Sequence[str]]]
    pattern: re.Pattern[str]
    found: frozenset[int] = frozenset({1})

    def read(self, output: str, folder: Path) -> Iterator[Finding]:
        """Gives the errors that an output tells of, of a run in this folder."""
        place, last = "", None
        for line in _COLOUR.sub("", output).splitlines():
            told = self.pattern.fullmatch(line)
            if told is None and last is not None and line[:1].isspace() and self.pattern is not _ESLINT:
                more = f"{last.text} {' '.join(line.split())}" if len(last.text) < MAX_TEXT else last.text
                last = msgspec.structs.replace(last, text=more)
                continue
            if last is not None:
                yield last
                last = None
            if told is None:
                place = line
            elif told.groupdict().get("kind", "error") == "error":
                path = told.groupdict().get("path", place)
                last = Finding(str(folder / path), int(told["line"]), int(told["column"]), _message(told["text"]))
        if last is not None:
            yield last


def _message(text: str) -> str:
    return " ".join(text.replace("[*] ", "", 1).split())


def _text(path: Path) -> str:
    """The beginning of a file; empty for none."""
    try:
        if not path.is_file():  # a pipe could keep its reader for ever
            return ""
        with path.open("rb") as file:
            return file.read(CONFIG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _has_table(folder: Path, name: str) -> bool:
    return re.search(rf"^[ \t]*\[\[?tool\.{name}[.\]]", _text(folder / "pyproject.toml"), re.MULTILINE) is not None


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _has_ruff(folder: Path) -> bool:
    return _has(folder, "ruff.toml", ".ruff.toml") or _has_table(folder, "ruff")


def _run_ruff(folder: Path, files: Sequence[Path]) -> Sequence[Sequence[str]]:
    flags = ("--quiet", "--no-fix", "--no-cache", "--force-exclude", "--output-format", "concise")
    return [["check", *flags, *map(str, files)]]


def _has_pyright(folder: Path) -> bool:
    return _has(folder, "pyrightconfig.json") or _has_table(folder, "pyright")


def _run_pyright(folder: Path, files: Sequence[Path]) -> Sequence[Sequence[str]]:
    interpreter: list[str] = []
    if '"venv"' not in _text(folder / "pyrightconfig.json"):
        pythons = [folder / place / "bin" / "python" for place in (".venv", "venv")]
        interpreter = [text for python in pythons if python.is_file() for text in ("--pythonpath", str(python))][:2]
    return [[*interpreter, *map(str, files)]]


def _has_tsc(folder: Path) -> bool:
    return _has(folder, "tsconfig.json")


def _run_tsc(folder: Path, files: Sequence[Path]) -> Sequence[Sequence[str]]:
    projects = [str(folder / path) for path in _referred(folder / "tsconfig.json")[:MAX_PROJECTS]] or [str(folder / "tsconfig.json")]
    # What tsc remembers of a run would be written beside the code; a composite project does not do without.
    flags = ("--noEmit", "--pretty", "false", "--incremental", "--tsBuildInfoFile", "/dev/null")
    # Declarations of libraries take half of the time, and are not what was changed.
    skip = () if any(path.name.endswith((".d.ts", ".d.mts", ".d.cts")) for path in files) else ("--skipLibCheck",)
    return [["--project", project, *flags, *skip] for project in projects]


def _referred(config: Path) -> list[str]:
    """Gives the projects that one without files of its own refers to; none of any other, or of one that cannot be read."""
    try:
        given = parse(config.name, _text(config).encode())
    except ConfigInvalid:
        return []
    listed = given.get("references") if given.get("files") == [] else None
    paths = [one.get("path") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [path for path in paths if isinstance(path, str) and path]


def _has_eslint(folder: Path) -> bool:
    flat = [f"eslint.config.{suffix}" for suffix in ("js", "mjs", "cjs", "ts", "mts", "cts")]
    older = [f".eslintrc{suffix}" for suffix in ("", ".js", ".cjs", ".json", ".yaml", ".yml")]
    return _has(folder, *flat, *older) or '"eslintConfig"' in _text(folder / "package.json")


def _run_eslint(folder: Path, files: Sequence[Path]) -> Sequence[Sequence[str]]:
    return [["--no-color", "--format", "stylish", "--quiet", *map(str, files)]]


CHECKERS = (
    Checker("eslint", _JAVASCRIPT | _TYPESCRIPT, _has_eslint, _run_eslint, _ESLINT),
    Checker("pyright", _PYTHON, _has_pyright, _run_pyright, _PYRIGHT),
    Checker("ruff", _PYTHON, _has_ruff, _run_ruff, _RUFF),
    Checker("tsc", _TYPESCRIPT, _has_tsc, _run_tsc, _TSC, frozenset({1, 2})),
)
