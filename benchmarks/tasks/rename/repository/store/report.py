from store.records import fetch


def line(key):
    return f"{key}: {fetch(key)}"
