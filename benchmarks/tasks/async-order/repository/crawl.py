import asyncio


async def fetch_all(addresses, fetch, limit=4):
    """Gives what `fetch` gives for each address, in their order."""
    return [await fetch(address) for address in addresses]
