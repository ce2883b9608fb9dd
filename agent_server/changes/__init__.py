"""What changed in the workspace, which task did it, and the way back."""
