"""What the server costs, measured against budgets: `python -m benchmarks [NAME...]`. README.md says what each budget means.

Each measurement is a module with a `measure`, its budgets are constants at its top. Most figures are ratios against `bare.py`,
a plain Starlette app that is started and measured in the same run: absolute times say more about the machine than about the code.
Machines are shared and noisy, so ours and the bare app take turns, round by round, and a slow moment hits both. Noise only ever
adds to what a start costs, so of starts the minima are compared; of all else the medians.
"""

import msgspec


class Line(msgspec.Struct, frozen=True):
    """One row of the table. `value` is a ratio (unit "x") or ours itself; without a budget it is only reported."""

    name: str
    value: float
    unit: str
    ours: str
    bare: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def is_ok(self) -> bool:
        return (self.at_most is None or self.value <= self.at_most) and (self.at_least is None or self.value >= self.at_least)

    @property
    def budget(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:.3g} {self.unit}"
        return f">= {self.at_least:g} {self.unit}" if self.at_least is not None else ""


def ratio(name: str, ours: float, bare: float, unit: str, *, at_most: float | None = None, at_least: float | None = None) -> Line:
    """Compares ours with the bare app's."""
    return Line(name, ours / bare, "x", _shown(ours, unit), _shown(bare, unit), at_most, at_least)


def figure(name: str, ours: float, unit: str, *, at_most: float | None = None, bare: float | None = None) -> Line:
    """Gives ours as it is; the bare app's, where there is one, is for reference."""
    return Line(name, ours, unit, _shown(ours, unit), _shown(bare, unit) if bare is not None else "", at_most)


def percentile(values: list[float], share: float) -> float:
    """Gives the value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _shown(value: float, unit: str) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()
