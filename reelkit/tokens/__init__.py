"""Bearer tokens that are signed JWTs: whose hold, and what they say."""
