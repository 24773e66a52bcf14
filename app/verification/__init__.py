"""Whether the package servers of the catalog start and list their tools: each is tried in a pod without internet."""

from app.verification.results import Results, Verification, make_page
from app.verification.verifier import Trial, Verifier

__all__ = ["Results", "Trial", "Verification", "Verifier", "make_page"]
