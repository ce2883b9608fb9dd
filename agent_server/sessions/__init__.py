"""Sessions and their tasks: the one loop, and all that leads to it and from it."""
