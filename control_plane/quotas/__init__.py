"""Parts of tenants' limits, leased to those who enforce them."""
