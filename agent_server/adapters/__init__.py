"""The server's side of the integrations: started, fed, answered from the log."""
