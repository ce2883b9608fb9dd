"""Commands: started, followed, ended as a tree, and told truthfully."""
