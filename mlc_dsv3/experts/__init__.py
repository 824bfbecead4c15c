"""How evenly a text loads the routed experts, and learning the router's correction bias anew on it."""
