"""The parts of `strnn-train`: configuration, models by name, objectives, checkpoints, processes."""
