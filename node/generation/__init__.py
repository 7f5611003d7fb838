"""Text from language models: sessions that go through stages on several devices, token by token."""
