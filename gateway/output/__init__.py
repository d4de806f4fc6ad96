"""What a job puts out: its events and its bytes, while it runs and afterwards."""
