"""Secrets of a team that callers store and never read back."""

from app.secrets.secrets import Secret, Secrets

__all__ = ["Secret", "Secrets"]
