"""Encryption of credentials at rest."""

from app.vault.vault import Vault, VaultError

__all__ = ["Vault", "VaultError"]
