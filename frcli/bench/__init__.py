"""How fast a bundle runs, where the time goes, and how that compares with llama.cpp alone."""
