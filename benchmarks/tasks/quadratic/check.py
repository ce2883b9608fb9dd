import signal
import sys
sys.path.insert(0, ".")
from dedupe import unique

rows = [{"a": n % 20_000, "tags": [n % 7, "x"]} for n in range(60_000)]
signal.alarm(5)  # the slow way takes a minute
got = unique(rows)
signal.alarm(0)
assert len(got) == len({(row["a"], row["tags"][0]) for row in rows})
assert got[:3] == rows[:3]
assert unique([{"a": 1, "b": 2}, {"b": 2, "a": 1}]) == [{"a": 1, "b": 2}]
assert unique([{"a": [1]}, {"a": "[1]"}, {"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2}]}}]) == [{"a": [1]}, {"a": "[1]"}, {"a": {"b": [1, {"c": 2}]}}]
