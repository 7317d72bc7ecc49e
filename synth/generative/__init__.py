"""Generative distillation: images that a latent diffusion model samples around modes of real ones.

    encoder (VAE) -> latents -> fusion with the text of the class -> modes -> denoiser -> decoder

`parts.py` is the networks, `weights.py` those that others have trained, `training.py` what the
buffer command does, `sampling.py` the guided sampling, `method.py` the objective of recipes. It
needs the extra `generative` (diffusers, transformers).
"""
