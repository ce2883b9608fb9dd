import sys
sys.path.insert(0, ".")
from pages import count, page

assert [count(range(n), 10) for n in (0, 1, 10, 11, 20)] == [0, 1, 1, 2, 2]
assert page(list(range(11)), 2, 10) == [10]
assert page(list(range(10)), 1, 10) == list(range(10))
for number, error in ((0, ValueError), (-1, ValueError), (3, IndexError)):
    try:
        page(list(range(11)), number, 10)
    except error:
        continue
    raise AssertionError(number)
