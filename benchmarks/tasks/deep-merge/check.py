import copy
import sys
sys.path.insert(0, ".")
from config import from_environment, load, merge

a, b = {"x": {"y": 1, "z": [1, 2]}, "k": 1}, {"x": {"z": [3], "w": {"v": 1}}, "k": {"n": 2}}
kept = copy.deepcopy((a, b))
merged = merge(a, b)
assert merged == {"x": {"y": 1, "z": [3], "w": {"v": 1}}, "k": {"n": 2}}, merged
merged["x"]["w"]["v"] = 9
merged["x"]["z"].append(4)
assert (a, b) == kept, "an argument was changed"
assert from_environment({"APP__A__B": "1", "APP__A__C_D": "2", "APP__E": "3", "OTHER": "4"}) == {"a": {"b": "1", "c_d": "2"}, "e": "3"}
assert load({"a": {"b": 0, "c": 1}}, '{"a": {"c": 2}}', {"APP__A__B": "7"}) == {"a": {"b": "7", "c": 2}}
