"""Contrastive pretraining of the UNet on unlabelled images (Chen et al. 2020; Chaitanya et al. 2020)."""
