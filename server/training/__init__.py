"""Training on this server's engine: how a training sees the model, and who carries out a job."""
