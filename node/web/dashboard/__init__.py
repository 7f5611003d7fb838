"""The dashboard: a small web app that every node serves to its owner. ES modules, no build step, no other host."""
