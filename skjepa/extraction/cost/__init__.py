"""What a pass will take, measured before it starts, and the number of backward passes chosen by it."""
