"""Whether a node can take work: what is known of it, and what follows."""
