RECORDS = {1: "one", 2: "two"}


def load_record(key):
    """Gives one record."""
    return RECORDS[key]


def load_record_all():
    """Gives every record, as load_record does."""
    return [load_record(key) for key in RECORDS]
