import json
from collections import Counter
from pathlib import Path

rows = [line.split(" ", 3) for line in (Path(__file__).parent / "repository" / "app.log").read_text().splitlines()]
errors = [row for row in rows if row[1] == "ERROR"]
report = json.loads(Path("report.json").read_text())
assert report["errors_by_hour"] == dict(Counter(row[0][11:13] for row in errors)), report
assert report["worst_worker"] == Counter(row[2] for row in errors).most_common(1)[0][0], report
