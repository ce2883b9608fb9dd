from store.records import load_record, load_record_all

__all__ = ["load_record", "load_record_all"]
