"""The region's durable jobs: their records, their owners, and those that lost theirs."""
