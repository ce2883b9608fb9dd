import re


def split_line(line):
    fields = re.findall(r'("(?:[^"]|"")*"|[^,]*)(?:,|$)', line + ",")[:-1]
    return [field[1:-1].replace('""', '"') if field[:1] == '"' else field for field in fields]
