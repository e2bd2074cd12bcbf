"""Networks compared with each other, the share of each modality in a result, and what a network costs."""
