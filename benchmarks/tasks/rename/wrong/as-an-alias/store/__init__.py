from store.records import fetch, fetch_all

load_record = fetch

__all__ = ["fetch", "fetch_all", "load_record"]
