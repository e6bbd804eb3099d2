"""What the pages share: what there is to show, pictures of it, texts made harmless, and controls."""
