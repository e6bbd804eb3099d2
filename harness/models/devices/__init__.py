"""The devices on which a base lies, where it is larger than one of them."""
