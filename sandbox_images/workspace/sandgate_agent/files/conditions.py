"""Whether a conditional download is to be answered (RFC 9110, section 13). Files have dates here and no entity tags."""

import email.utils
from collections.abc import Mapping

from sandgate_agent.errors import PreconditionFailed


def is_unchanged_for(headers: Mapping[str, str], modified_s: int) -> bool:
    """Whether the caller already has the file as it is. Raises: PreconditionFailed."""
    if "if-match" in headers:
        if headers["if-match"].strip() != "*":
            raise PreconditionFailed("the file has no entity tag that could match If-Match")
    else:
        unmodified_since = _seconds(headers.get("if-unmodified-since"))
        if unmodified_since is not None and modified_s > unmodified_since:
            raise PreconditionFailed("the file was modified after If-Unmodified-Since")
    if "if-none-match" in headers:
        return headers["if-none-match"].strip() == "*"
    modified_since = _seconds(headers.get("if-modified-since"))
    return modified_since is not None and modified_s <= modified_since


def _seconds(date: str | None) -> float | None:
    """Unix seconds; None for what is no date, which is to be ignored."""
    if date is None:
        return None
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
