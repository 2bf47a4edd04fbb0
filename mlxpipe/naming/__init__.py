"""What a tensor is called: producers' conventions, renaming, groups, experts."""
