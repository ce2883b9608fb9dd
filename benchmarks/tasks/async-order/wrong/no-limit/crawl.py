import asyncio


async def fetch_all(addresses, fetch, limit=4):
    return await asyncio.gather(*(fetch(address) for address in addresses), return_exceptions=True)
