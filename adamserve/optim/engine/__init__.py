"""How rules run: a rule's arithmetic is traced once, and one of three executors runs it (C, CUDA, torch)."""
