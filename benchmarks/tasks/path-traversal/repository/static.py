import os


def serve_file(folder, path):
    """Gives the contents of a file below the folder."""
    with open(os.path.join(folder, path), "rb") as file:
        return file.read()
