"""Does the learning work? All nodes' models in one tensor: thousands of nodes learn at the speed of one product."""
