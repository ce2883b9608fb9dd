def unique(rows):
    seen = {}
    for row in rows:
        seen.setdefault(str(row), row)
    return list(seen.values())
