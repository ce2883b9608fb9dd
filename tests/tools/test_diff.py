import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools._diff import MAX_DIFF, unified_diff

LINES = st.lists(st.sampled_from(["a", "b", "", "c\r", "\u2028", "same"]), max_size=30).map("\n".join)


def test_nothing_changed_gives_nothing() -> None:
    assert unified_diff("a\n", "a\n", "f") == ""


def test_a_change_far_down_has_its_line_numbers() -> None:
    lines = [f"{n}\n" for n in range(1, 1_001)]
    diff = unified_diff("".join(lines), "".join([*lines[:499], "changed\n", *lines[500:]]), "f")
    assert diff == "--- a/f\n+++ b/f\n@@ -497,7 +497,7 @@\n 497\n 498\n 499\n-500\n+changed\n 501\n 502\n 503\n"


@given(old=LINES, new=LINES)
def test_patch_makes_the_new_text_of_the_old(tmp_path_factory: pytest.TempPathFactory, old: str, new: str) -> None:
    file = tmp_path_factory.mktemp("diff") / "f"
    file.write_bytes(old.encode())
    diff = unified_diff(old, new, "f")
    subprocess.run(["git", "apply", "--allow-empty", "--unidiff-zero", "-"], input=diff.encode(), cwd=file.parent, check=True)
    assert (file.read_bytes() if file.exists() else b"") == new.encode()


def test_a_long_diff_is_cut() -> None:
    diff = unified_diff(None, "line\n" * 100_000, "f")
    assert len(diff) < MAX_DIFF + 100
    assert diff.endswith("[the rest of the diff is left out]\n")


def test_texts_without_a_common_line_are_compared_in_bounded_time(tmp_path: Path) -> None:
    old = "".join(f"{n % 50}\n" for n in range(100_000))
    new = "".join(f"{n % 49}\n" for n in range(100_000))
    start = time.process_time()
    unified_diff(old, new, "f")
    assert time.process_time() - start < 5
