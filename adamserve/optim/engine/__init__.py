"""How rules run: one exact arithmetic, traced once, and its three executors (C, CUDA, torch)."""
