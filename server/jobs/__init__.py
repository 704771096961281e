"""Training jobs and the files they work on: kept in one database, done one at a time, true after any crash.

It does not know HTTP, nor how a vector is trained: `trainer.Trainer` is who trains.
"""
