"""DROP's documents and scores: lm-eval's own functions."""

from lm_eval.tasks.drop.utils import process_docs, process_results

__all__ = ["process_docs", "process_results"]
