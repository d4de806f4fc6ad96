"""Requests against a model's rules. Pure."""
