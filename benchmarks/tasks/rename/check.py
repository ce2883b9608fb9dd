import re
import subprocess
import sys
from pathlib import Path

left = [str(path) for path in Path(".").rglob("*") if path.suffix in (".py", ".md") and re.search(r"(?<!git )(?<!test_)\bfetch\b", path.read_text())]
assert not left, left
readme = Path("README.md").read_text()
assert "git fetch" in readme and "from store import load_record" in readme and "fetch_all()" in readme
sys.path.insert(0, ".")
import store
assert store.load_record(2) == "two" and store.fetch_all() == ["one", "two"]
assert "load_record" in store.__all__
subprocess.run([sys.executable, "-m", "unittest", "-q"], check=True)
