"""The page at `/`: a playground for steering, made of files that ship with the package."""
