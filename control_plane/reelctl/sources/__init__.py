"""Reading what an operator registers: where it is, what may be in it, its manifest."""
