"""Conversations: through a model's chat template to data sets with loss masks."""
