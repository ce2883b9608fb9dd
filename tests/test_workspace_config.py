import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_server.workspace_config import MAX_BYTES, ConfigInvalid, read


def test_a_workspace_without_settings_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('{"a": 1}', {"a": 1}),
        ('\ufeff{"a": 1}', {"a": 1}),
        ('{"a": 1, // said\n /* and \n said */ "b": [1, 2,],}', {"a": 1, "b": [1, 2]}),
        (r'{"url": "http://x/*,}*/", "q": "\"//\","}', {"url": "http://x/*,}*/", "q": '"//",'}),
    ],
)
def test_comments_and_last_commas_are_skipped_and_strings_are_kept(tmp_path: Path, text: str, settings: dict[str, Any]) -> None:
    (tmp_path / "opencode.jsonc").write_text(text)
    assert read(tmp_path) == settings


def test_of_several_files_all_count_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "opencode.jsonc").write_text('{"a": {"x": 1, "y": {"z": 1}}, "b": 1, "c": {}}')
    assert read(tmp_path) == {"a": {"x": 1, "y": {"z": 1}}, "b": 1, "c": {}}
    (tmp_path / "opencode.json").write_text('{"a": {"y": {"w": 2}}, "b": {"v": 2}, "c": 2}')
    assert read(tmp_path) == {"a": {"x": 1, "y": {"z": 1, "w": 2}}, "b": {"v": 2}, "c": 2}
    (tmp_path / ".opencode").mkdir()
    (tmp_path / ".opencode" / "opencode.json").write_text('{"b": 3}')
    assert read(tmp_path)["b"] == 3


def test_files_of_any_depth_are_taken_together_or_refused(tmp_path: Path) -> None:
    deep = '{"a":' * 950 + "1" + "}" * 950
    for name in ("opencode.json", "opencode.jsonc"):
        (tmp_path / name).write_text(deep)
    with contextlib.suppress(ConfigInvalid):
        read(tmp_path)


def test_a_folder_of_settings_may_be_something_else(tmp_path: Path) -> None:
    (tmp_path / ".opencode").touch()
    (tmp_path / "opencode.json").write_text('{"a": 1}')
    assert read(tmp_path) == {"a": 1}


@pytest.mark.parametrize("text", ["/* " * 300_000, '\\"' * 500_000, ", " * 500_000, "{" + '"a"' * 300_000, "//" * 500_000])
def test_what_has_no_end_is_refused_in_no_time(tmp_path: Path, text: str) -> None:
    (tmp_path / "opencode.json").write_text(text)
    with pytest.raises(ConfigInvalid):
        read(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": }', "null", '{"a": 1} /* not closed', '{"a": "not closed}', "[" * 100_000, " " * (MAX_BYTES + 1)]
)
def test_what_is_no_object_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "opencode.json").write_text(text)
    with pytest.raises(ConfigInvalid, match=r"opencode\.json"):
        read(tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "opencode.json")
    with pytest.raises(ConfigInvalid, match=r"opencode\.json"):
        read(tmp_path)
