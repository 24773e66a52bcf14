"""The agent of a volume instead of a workspace: serves the files of one volume to the control plane."""
