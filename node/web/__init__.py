"""The node's door for programs that speak OpenAI's HTTP interface: the models of the mesh behind a local address."""
