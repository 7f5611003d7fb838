"""What may be done with a gradient before it moves a model: one small file for each idea, on flat float32 vectors."""
