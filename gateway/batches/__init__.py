"""Batches: many videos under one record, made by whichever gateway owns it."""
