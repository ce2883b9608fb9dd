import ast
import subprocess
import sys
from pathlib import Path

for path in Path("app").glob("*.py"):
    first = "app" if path.stem == "__init__" else f"app.{path.stem}"
    subprocess.run([sys.executable, "-c", f"import {first}"], check=True)
    assert "import_module" not in path.read_text() and "__import__" not in path.read_text(), path
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert not any(isinstance(inner, (ast.Import, ast.ImportFrom)) for inner in ast.walk(node)), path
sys.path.insert(0, ".")
import app
ada = app.Customer("Ada")
order = ada.order(5)
ada.order(7)
assert isinstance(order, app.Order) and app.describe(order) == "Ada: 5" and app.describe(ada) == "Ada: 12"
