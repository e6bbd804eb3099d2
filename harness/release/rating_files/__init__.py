"""Files by which people rate blind: labels of single answers, and preferences between two."""
