"""The region's nodes: which there are, which one takes a job next, who waits for one."""
