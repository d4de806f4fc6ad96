"""What is known of a job: its id, the numbers of its attempts, its record."""
