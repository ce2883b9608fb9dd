import asyncio
import sys
sys.path.insert(0, ".")
from crawl import fetch_all

running = most = 0

async def fetch(address):
    global running, most
    running += 1
    most = max(most, running)
    try:
        await asyncio.sleep(0.05 if address % 2 else 0.01)
        if address == 3:
            raise OSError("down")
        return address * 10
    finally:
        running -= 1

got = asyncio.run(fetch_all(range(12), fetch, limit=3))
assert most == 3, most
assert isinstance(got[3], OSError)
assert [each for at, each in enumerate(got) if at != 3] == [at * 10 for at in range(12) if at != 3]
assert asyncio.run(fetch_all([], fetch)) == []
