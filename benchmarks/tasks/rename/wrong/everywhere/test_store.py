import unittest

import store
from store.report import line


class Store(unittest.TestCase):
    def test_fetch(self):
        self.assertEqual(store.load_record(1), "one")
        self.assertEqual(store.load_record_all(), ["one", "two"])
        self.assertEqual(line(2), "2: two")
