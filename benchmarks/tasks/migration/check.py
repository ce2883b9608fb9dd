import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "shop.db")
    db = sqlite3.connect(path)
    db.executescript(Path("schema.sql").read_text())
    db.close()
    for _ in range(2):
        subprocess.run([sys.executable, "migrate.py", str(path)], check=True)
        db = sqlite3.connect(path)
        assert [row[1] for row in db.execute("PRAGMA table_info(customers)")] == ["id", "name", "city_id"]
        joined = db.execute("SELECT c.id, c.name, t.name FROM customers c LEFT JOIN cities t ON t.id = c.city_id ORDER BY c.id").fetchall()
        assert joined == [(1, "Ada", "London"), (2, "Linus", "Helsinki"), (5, "Grace", "London"), (7, "Alan", None)], joined
        assert db.execute("SELECT count(*) FROM cities").fetchone() == (2,)
        assert db.execute("SELECT customer_id, total FROM orders ORDER BY id").fetchall() == [(1, 100), (5, 250), (1, 50)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        try:
            db.execute("INSERT INTO cities (name) VALUES ('London')")
        except sqlite3.IntegrityError:
            pass
        else:
            raise AssertionError("a city can be there twice")
        db.close()

    path = Path(folder, "refuses.db")
    db = sqlite3.connect(path)
    db.executescript(Path("schema.sql").read_text())
    db.executescript("CREATE TRIGGER no BEFORE UPDATE ON customers BEGIN SELECT RAISE(ABORT, 'no'); END;")
    before = list(db.iterdump())
    db.close()
    if subprocess.run([sys.executable, "migrate.py", str(path)], capture_output=True).returncode != 0:
        assert list(sqlite3.connect(path).iterdump()) == before, "a migration that failed left something"
