"""Filters: which documents are kept, by thresholds that a recipe can change, and a reason for every drop."""

from megacode.corpus.filters.chain import Filter, make_filters
from megacode.corpus.filters.settings import FilterSettings

__all__ = ["Filter", "FilterSettings", "make_filters"]
