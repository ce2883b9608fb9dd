def unique(rows):
    seen = {}
    for row in rows:
        seen.setdefault(tuple(sorted((key, tuple(value) if isinstance(value, list) else value) for key, value in row.items())), row)
    return list(seen.values())
