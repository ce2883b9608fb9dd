"""A strict reader of Prometheus' text format, version 0.0.4, as far as a server writes it that has counters and gauges alone."""

import math
import re
from collections.abc import Mapping

_NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL})(?:,{_LABEL})*)\}})? (\S+)")

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    """Gives each sample by its name and labels.

    Errors: AssertionError for a line that is none, a family without HELP and TYPE before it, or in two places, a sample
    that comes twice, and a counter that is negative or not named as one.
    """
    assert text.endswith("\n")
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    families: dict[str, str] = {}
    family = helped = ""
    for line in text.splitlines():
        if found := re.fullmatch(rf"# HELP ({_NAME}) (\S.*)", line):
            helped = found[1]
            assert helped not in families, line
        elif found := re.fullmatch(rf"# TYPE ({_NAME}) (counter|gauge)", line):
            assert found[1] == helped, line
            family = found[1]
            families[family] = found[2]
        else:
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            assert found[1] == family, line
            pairs = re.findall(r'([a-zA-Z0-9_]+)="((?:[^"\\]|\\.)*)"', found[2] or "")
            assert len({name for name, _ in pairs}) == len(pairs), line
            key = (family, frozenset(pairs))
            assert key not in samples, line
            samples[key] = float(found[3])
            assert math.isfinite(samples[key]), line
            if families[family] == "counter":
                assert family.endswith("_total"), line
                assert samples[key] >= 0, line
    return samples
