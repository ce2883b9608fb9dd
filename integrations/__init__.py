"""The chat platforms and services an instance can be reached through. None is here yet."""
