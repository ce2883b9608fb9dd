"""Pages of a list, counted from 1."""


def count(items, size):
    return len(items) // size


def page(items, number, size):
    if number > count(items, size):
        raise IndexError(f"there is no page {number}")
    return items[(number - 1) * size : number * size]
