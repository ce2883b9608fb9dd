def unique(rows):
    """Gives the rows without repetitions, in order."""
    kept = []
    for row in rows:
        if row not in kept:
            kept.append(row)
    return kept
