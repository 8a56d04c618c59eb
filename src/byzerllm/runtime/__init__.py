"""Where the server and its engine processes run."""
