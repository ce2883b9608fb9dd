import sqlite3
import sys

db = sqlite3.connect(sys.argv[1])
if "city" in [row[1] for row in db.execute("PRAGMA table_info(customers)")]:
    with db:
        db.execute("CREATE TABLE cities (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        db.execute("INSERT INTO cities (name) SELECT DISTINCT city FROM customers WHERE city IS NOT NULL")
        db.execute("ALTER TABLE customers ADD COLUMN city_id INTEGER REFERENCES cities(id)")
        db.execute("UPDATE customers SET city_id = (SELECT id FROM cities WHERE name = city)")
        db.execute("ALTER TABLE customers DROP COLUMN city")
