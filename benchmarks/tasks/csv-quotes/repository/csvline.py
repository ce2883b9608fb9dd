def split_line(line):
    """Gives the fields of one line of CSV."""
    return line.split(",")
