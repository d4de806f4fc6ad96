"""The application behind the port: admits videos, runs them on nodes, commits them."""
