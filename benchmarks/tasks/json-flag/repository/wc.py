"""Counts lines, words and bytes: python3 wc.py FILE..."""

import argparse
from pathlib import Path


def count(path):
    data = Path(path).read_bytes()
    return data.count(b"\n"), len(data.split()), len(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    for path in arguments.files:
        print(*count(path), path)


if __name__ == "__main__":
    main()
