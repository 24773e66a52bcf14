"""Runs the egress proxy from this folder, which is put as it is into a container."""

from sandgate_egress.main import main

main()
