import json


def merge(base, over):
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def from_environment(environ):
    config = {}
    for name, value in environ.items():
        if name.startswith("APP__"):
            *parents, last = name[5:].lower().split("__")
            place = config
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return config


def load(defaults, text, environ):
    return merge(merge(defaults, json.loads(text)), from_environment(environ))
