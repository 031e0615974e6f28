"""Train stages one after the other: the trainer, its arguments, sampler, callbacks, and the folder of a run."""
