"""Training recipes of papers, shared by the files in configs/."""
