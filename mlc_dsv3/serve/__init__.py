"""The HTTP server: the APIs that programs and agents speak, and a page to chat on."""
