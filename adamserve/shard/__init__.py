"""One shard, without Ray, wire or disk: who owns what, when a push may be applied, and the state that it changes."""
