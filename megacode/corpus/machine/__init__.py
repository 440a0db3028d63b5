"""Files of this machine as documents: which ones, and what is taken out of them."""
