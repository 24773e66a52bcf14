"""The data plane: requests that are meant for a sandbox, from routing to streaming, and TLS for them."""
