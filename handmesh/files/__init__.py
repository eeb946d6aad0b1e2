"""What is read from disk and written to it: photographs, meshes, animations, videos."""
