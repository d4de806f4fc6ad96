"""What was drawn once and need not be drawn, or fetched, again."""
