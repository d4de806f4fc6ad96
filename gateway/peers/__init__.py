"""The other gateways of the region, and how they are asked for what is theirs."""
