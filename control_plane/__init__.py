"""The control plane: nodes and gateways under leases, and the fleet that gateways watch."""
