RECORDS = {1: "one", 2: "two"}


def fetch(key):
    """Gives one record."""
    return RECORDS[key]


def fetch_all():
    """Gives every record, as fetch does."""
    return [fetch(key) for key in RECORDS]
