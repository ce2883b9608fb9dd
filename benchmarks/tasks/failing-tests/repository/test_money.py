import unittest

from money import parse, show, split


class Money(unittest.TestCase):
    def test_parse(self):
        self.assertEqual([parse(text) for text in ("12", "12.3", "12.34", "0.05", "-0.50", "-1.25")], [1200, 1230, 1234, 5, -50, -125])

    def test_show(self):
        self.assertEqual([show(cents) for cents in (1200, 1205, 5, -50, -125)], ["12.00", "12.05", "0.05", "-0.50", "-1.25"])

    def test_split(self):
        self.assertEqual(split(100, 3), [34, 33, 33])
        self.assertEqual(split(101, 3), [34, 34, 33])
