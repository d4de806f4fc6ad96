"""Tokens that operators have revoked, in the global store."""
