"""Who is here, may they be here, and how do bytes reach them? Knows nothing of models."""
