import os


def serve_file(folder, path):
    root = os.path.realpath(folder)
    target = os.path.realpath(os.path.join(root, path))
    if not target.startswith(root):
        raise PermissionError(path)
    with open(target, "rb") as file:
        return file.read()
