"""The Model Context Protocol: this instance's tools as a server of it."""
