"""Train stage after stage: the trainer, its arguments, sampler, callbacks and what it leaves on disk."""
