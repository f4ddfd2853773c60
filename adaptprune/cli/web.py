"""x"""
def command() -> None:
    """Web."""
command.__name__ = "web"
