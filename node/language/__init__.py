"""Language models in the Hugging Face layout, by our own code: their layers, tokenizers and sizes, on one device."""
