"""Regions as the mesh sees them: their summaries, and what operators want of them."""
