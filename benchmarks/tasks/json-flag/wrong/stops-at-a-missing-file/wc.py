"""Counts lines, words and bytes: python3 wc.py FILE..."""

import argparse
import json
import sys
from pathlib import Path


def count(path):
    data = Path(path).read_bytes()
    return data.count(b"\n"), len(data.split()), len(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        counts = {path: count(path) for path in arguments.files}
    except OSError as error:
        sys.exit(str(error))
    if not arguments.json:
        for path, numbers in counts.items():
            print(*numbers, path)
        return
    if len(counts) > 1:
        counts["total"] = [sum(column) for column in zip(*counts.values())]
    print(json.dumps({path: dict(zip(("lines", "words", "bytes"), numbers)) for path, numbers in counts.items()}))


if __name__ == "__main__":
    main()
