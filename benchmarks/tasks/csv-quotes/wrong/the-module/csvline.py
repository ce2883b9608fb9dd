from csv import Error, reader


def split_line(line):
    try:
        return next(reader([line], strict=True)) or [""]
    except Error as error:
        raise ValueError(str(error)) from error
