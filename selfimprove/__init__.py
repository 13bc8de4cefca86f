"""One command-line experiment runner for methods by which language models improve on their own output."""

__version__ = "0.1.0"
