"""Tool calls: what a task may call, and how a call is made."""
