"""The closed list of mechanisms, by name, each with what it predicts."""

from __future__ import annotations

MECHANISMS: dict[str, str] = {
    "decayed-buffers": "a batch without values updates the buffers with mean 0 and variance 0",
    "decoded-variance": "a rank's variance travels as 1 / sqrt(var + eps): digits far below eps are lost, and"
    " with eps 0 a variance that is computed as zero is taken for infinite",
    "rounded-counts": "the ranks' counts are added up in the dtype of the buffers",
    "accepted-single-value": "one value a channel is normalised as any batch, and its variance divided by 0",
    "half-statistics": "a batch's mean and 1 / sqrt(var + eps) are rounded to the input's half dtype",
    "half-mean": "a batch's mean is rounded to float16",
    "half-evaluation": "an evaluation rounds 1 / sqrt(var + eps) and its elements to the input's half dtype",
    "half-sums": "the backward rounds its sums and elements to the input's half dtype",
    "half-partial-sums": "a block's threads pass partial sums of the backward on in the input's half dtype",
    "lost-update": "an update goes to copies of the running buffers, which stay as they were",
    "sequential-sums": "sums are added up one by one, grade B, or by few threads",
    "sequential-backward": "the backward adds a rank's values up one by one, or in the lanes of a vector",
    "stale-buffers": "the backward of an evaluation reads the buffers as later steps have left them",
    "freed-buffers": "the backward of an evaluation reads copies of strided buffers that are freed already",
    "misread-layout": "the backward reads the cotangent's memory in the layout of the input",
}
