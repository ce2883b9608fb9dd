from pathlib import Path

got = Path("settings.ini").read_bytes()
given = (Path(__file__).parent / "repository" / "settings.ini").read_bytes()
wanted = given.replace(b"host = localhost\r\ntimeout = 5\r\n", b"host = localhost\r\ntimeout = 30\r\nretries = 3\r\n")
assert got == wanted, got
