"""The torch side of a node: all but ``spawn`` and ``settings`` runs in worker processes."""
