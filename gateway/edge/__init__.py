"""What both edges share: limits, metrics, the table of errors."""
