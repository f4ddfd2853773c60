"""The web page: a chat and a comparison over any OpenAI-compatible server, with the pictures of what was kept."""
