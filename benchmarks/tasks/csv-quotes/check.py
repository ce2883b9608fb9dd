import sys
sys.path.insert(0, ".")
from csvline import split_line

for line, fields in [
    ("", [""]), ("a,b", ["a", "b"]), ('"a,b",c', ["a,b", "c"]), ('"a ""b"" c"', ['a "b" c']), ('a,"",c', ["a", "", "c"]),
    (",", ["", ""]), ('"""",x', ['"', "x"]), ('a,b,', ["a", "b", ""]),
]:
    assert split_line(line) == fields, (line, split_line(line))
for line in ('"a', 'a,"b,c', '"a""'):
    try:
        split_line(line)
    except ValueError:
        continue
    raise AssertionError(line)
assert "_csv" not in sys.modules, "the csv module was used"
