"""The web console: pages of the service for people, rendered by the server, with a few lines of JavaScript beside them."""
