"""Parts shared by the pages: stored results, charts, escaped texts and controls."""
