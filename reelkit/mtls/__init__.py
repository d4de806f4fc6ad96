"""Mutual TLS among the parts: who each is, what it shows, whom it lets in."""
