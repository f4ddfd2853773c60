"""A chat in the terminal: with a model in this process, over its kept KV cache, or with a server."""
