"""The demonstration: four nodes that join, learn, answer and survive on one machine."""
