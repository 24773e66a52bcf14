"""The endpoint /files: whole files in and out, streamed in bounded memory."""
