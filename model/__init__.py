"""The LivePortrait networks, face analysers and animation. Importing this package loads no heavy dependency."""
