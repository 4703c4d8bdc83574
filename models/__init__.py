"""How the demonstration models are made, and the models themselves."""
