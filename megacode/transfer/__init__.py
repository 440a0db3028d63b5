"""Which source's steps help which task, to first order: gradients of a checkpoint, inner products, intervals."""
