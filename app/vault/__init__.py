"""Encryption of credentials at rest."""

from app.vault.vault import Vault

__all__ = ["Vault"]
