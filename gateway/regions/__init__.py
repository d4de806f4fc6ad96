"""The other regions as this gateway sees them, and which of them a job should go to."""
