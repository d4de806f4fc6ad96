"""Who may call: tokens, the keys that verify them, and the scopes that endpoints ask for."""
