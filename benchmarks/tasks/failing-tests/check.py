import hashlib
import subprocess
import sys
from pathlib import Path

given = Path(__file__).parent / "repository" / "test_money.py"
assert Path("test_money.py").read_bytes() == given.read_bytes(), "the tests were changed"
subprocess.run([sys.executable, "-m", "unittest", "-q"], check=True)
sys.path.insert(0, ".")
from money import parse, show, split
assert show(parse("-12.07")) == "-12.07" and sum(split(999, 7)) == 999
