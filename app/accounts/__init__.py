"""Teams and API keys."""

from app.accounts.accounts import Accounts, ApiKey, Team

__all__ = ["Accounts", "ApiKey", "Team"]
