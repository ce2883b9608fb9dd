"""The workspace's files: read, written, listed, searched, watched, carried."""
