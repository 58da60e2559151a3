"""The Ray shell: shard actors, and the controller that places, heals and routes."""
