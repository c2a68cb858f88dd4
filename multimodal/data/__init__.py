"""One file a data set, and what they share: tokens, batches, loaders."""
