"""F11: pages that show one run or several. Never imports torch."""
