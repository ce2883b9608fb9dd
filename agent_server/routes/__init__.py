"""The routes, one module for each noun of the API; each has a public value ROUTES."""
