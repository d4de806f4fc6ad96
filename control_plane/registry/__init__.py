"""Registered models and adapters: what there is, and which nodes should have it."""
