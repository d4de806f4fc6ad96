"""The store: a port, an implementation on etcd, one in memory, and what is built on it."""
