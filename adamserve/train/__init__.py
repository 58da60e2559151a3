"""Training on the service: a task, the loop of its workers, the crew, and the folder that a run leaves behind."""
