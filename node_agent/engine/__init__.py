"""The torch side of a node: everything here but ``spawn`` runs in worker processes."""
