"""Tenants: what operators let each of them do."""
