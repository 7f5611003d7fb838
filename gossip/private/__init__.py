"""The policy `private`: a group learns the sum of its members' vectors, and nothing else of any of them."""
