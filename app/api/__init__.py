"""HTTP: requests in, answers out. Decides nothing."""
