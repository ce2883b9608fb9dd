from store.records import load_record


def line(key):
    return f"{key}: {load_record(key)}"
