"""A finished search as something to keep and to show: text, one HTML page, graphs, JSON, Markdown."""
