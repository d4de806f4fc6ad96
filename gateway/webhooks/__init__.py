"""Webhooks: a signed POST at the end of a video or a batch, to a URL that its client named."""
