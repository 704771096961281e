"""Training on this server's engine: the model as seen by training, and the trainer for jobs."""
