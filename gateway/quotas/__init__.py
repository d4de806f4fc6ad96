"""What tenants may have, enforced: requests a second, and videos that wait."""
