"""``reelctl``: what operators type."""
