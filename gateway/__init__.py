"""The edge of a region: authenticates, admits, places, forwards."""
