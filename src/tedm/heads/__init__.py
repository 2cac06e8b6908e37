"""Heads: pixel classifiers on cached features, and the registry through which others add theirs."""

from tedm.heads.base import ArrayFeatures, FeatureSource, Head, create, load

__all__ = ["ArrayFeatures", "FeatureSource", "Head", "create", "load"]
