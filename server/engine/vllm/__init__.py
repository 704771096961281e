"""vLLM behind `protocol.Engine`: its scheduler runs in the serving process, its workers in processes of their own.

`engine.py` is the thread that drives vLLM's engine core, `worker.py` what its workers do more than vLLM's own. What
goes between them is in `messages.py`. Only `engine.py`, `scheduler.py`, `start.py`, `pages.py`, `sites.py` and
`worker.py` import vLLM.
"""
