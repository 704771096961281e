"""Training jobs and their files: kept in one database, run one at a time, consistent after any crash.

`trainer.Trainer` does the training.
"""
