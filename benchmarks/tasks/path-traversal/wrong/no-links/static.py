import os


def serve_file(folder, path):
    root = os.path.abspath(folder)
    target = os.path.abspath(os.path.join(root, path))
    if not target.startswith(root + os.sep):
        raise PermissionError(path)
    with open(target, "rb") as file:
        return file.read()
