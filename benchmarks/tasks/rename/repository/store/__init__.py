from store.records import fetch, fetch_all

__all__ = ["fetch", "fetch_all"]
