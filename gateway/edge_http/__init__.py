"""The HTTP edge: translates between aiohttp and the application port."""
