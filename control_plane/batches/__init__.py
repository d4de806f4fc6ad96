"""The region's batches: their records, which any gateway may take over."""
