"""Denoising diffusion: schedule, objective, training, sampling, checkpoints."""
