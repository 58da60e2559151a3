"""Ray, and all of it: shard processes, the controller that places and heals them, and submitted jobs."""
