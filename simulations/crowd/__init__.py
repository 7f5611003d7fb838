"""A mesh of a thousand members for an hour: who is here and what they say, by the deployed machines."""
