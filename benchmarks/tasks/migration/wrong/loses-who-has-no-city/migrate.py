import sqlite3
import sys

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN")
if "city" in [row[1] for row in db.execute("PRAGMA table_info(customers)")]:
    db.execute("CREATE TABLE cities (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    db.execute("INSERT INTO cities (name) SELECT DISTINCT city FROM customers WHERE city IS NOT NULL")
    db.execute("CREATE TABLE moved (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city_id INTEGER REFERENCES cities(id))")
    db.execute("INSERT INTO moved SELECT c.id, c.name, t.id FROM customers c JOIN cities t ON t.name = c.city")
    db.execute("DROP TABLE customers")
    db.execute("ALTER TABLE moved RENAME TO customers")
db.execute("COMMIT")
