"""Tools for the conformance suite alone."""
