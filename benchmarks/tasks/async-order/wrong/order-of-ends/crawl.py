import asyncio


async def fetch_all(addresses, fetch, limit=4):
    semaphore = asyncio.Semaphore(limit)

    async def one(address):
        async with semaphore:
            try:
                return await fetch(address)
            except Exception as error:
                return error

    return [await ended for ended in asyncio.as_completed([one(address) for address in addresses])]
