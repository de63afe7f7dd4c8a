"""What a run is made of: stages, how long they take, and what is tried before they begin."""
