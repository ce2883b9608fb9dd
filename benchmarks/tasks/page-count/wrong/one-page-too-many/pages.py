def count(items, size):
    return len(items) // size + 1


def page(items, number, size):
    if number < 1:
        raise ValueError(f"pages are counted from 1, not {number}")
    if number > count(items, size):
        raise IndexError(f"there is no page {number}")
    return items[(number - 1) * size : number * size]
