"""The service process.Process: commands and terminals, with any number of listeners."""
