"""What keys of files and columns are called on the pages: words, with the unit where a number has one.

One dictionary for all pages. A key that is not in it is printed with spaces for its underscores.
"""

from __future__ import annotations

from latentprint.tasks.pages.headline import SCORES

TITLES = {
    **SCORES,
    "eps_norm": "‖ε‖₂",
    "loss": "denoising loss",
    "log_density": "log density",
    # images and their counts
    "sample_id": "image",
    "highest_sample_id": "image with the highest",
    "copies": "occurrences",
    "samples": "images, repeats included",
    "distinct": "distinct images",
    "n_samples": "images, repeats included",
    "n_images": "images",
    "n_items": "items",
    "n_train": "training images",
    "n_holdout": "held-out images",
    "n_control": "control images",
    "n_controls": "control images",
    "n_repeated": "repeated images",
    "n_usable": "images with a finite score",
    "n_excluded": "images without a finite score",
    "n_flagged": "flagged images",
    "n_generated": "generated images",
    "n_evaluations": "network evaluations",
    "near_duplicate_group": "near-duplicate group",
    "hits": "copies of it",
    "hits_adaptive": "copies of it, adaptive rule",
    "example": "the first of them",
    # scores
    "log_growth_se": "standard error of log growth",
    "image_group": "group",
    "mean": "mean",
    "sd": "standard deviation",
    "quartile_1": "lower quartile",
    "quartile_3": "upper quartile",
    "lower": "from",
    "upper": "to",
    "fraction": "share of the group",
    "mean_log_growth": "mean log growth",
    "mean_eps_norm": "mean ‖ε‖₂",
    "highest": "highest log growth",
    "lowest": "lowest log growth",
    # statistics
    "auc": "AUC",
    "tpr": "true-positive rate",
    "fpr": "false-positive rate",
    "p_value": "p",
    "q_value": "q, Benjamini-Hochberg",
    "alpha": "false-discovery rate",
    "p_cutoff": "largest p that is flagged",
    "smallest_p_value": "smallest p that these controls can give",
    "fewest_flags": "fewest flags that the procedure can give",
    "false_flags_if_none_memorized": "false flags expected if no image stood out",
    "interval_95": "95% interval",
    "is_flagged": "flagged",
    # parameters
    "axes": "axes K",
    "n_axes": "axes K",
    "steps": "steps",
    "n_steps": "steps N",
    "second_timestep": "second timestep",
    "stride": "training timesteps per step",
    "delta": "edge length δ, l2 in pixel values −1 … 1",
    "repeats": "independent draws of the axes",
    "precision": "network arithmetic",
    "baselines": "further scores",
    "reversibility": "images for the reversibility error",
    "sampler": "sampler",
    "embedding": "distances are measured in",
    "mirror": "mirror images count",
    "samples_per_tar": "generated images per tar",
    "devices": "devices",
    "threads": "threads per worker, 0: cores shared out",
    "batch_size": "images per network call, 0: by memory",
    "runner": "runner of the tasks",
    "ray_address": "address of the Ray cluster",
    "shard_bytes": "largest shard, bytes",
    "shard_mb": "largest shard, MiB",
    "max_bad_fraction": "tolerated share of unusable items",
    "fit": "fit to the size",
    "resample": "resampling filter",
    # provenance
    "git_commit": "source commit",
    "shard_seconds": "sharding",
    "score_seconds": "scoring",
    "extract_seconds": "generating and counting",
}


def title(key: str) -> str:
    """The key in words.

    >>> title("n_excluded"), title("local_density")
    ('images without a finite score', 'local density')
    """
    return TITLES.get(key, key.replace("_", " "))
