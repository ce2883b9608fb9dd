import unittest

import store
from store.report import line


class Store(unittest.TestCase):
    def test_fetch(self):
        self.assertEqual(store.fetch(1), "one")
        self.assertEqual(store.fetch_all(), ["one", "two"])
        self.assertEqual(line(2), "2: two")
