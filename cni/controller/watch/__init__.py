"""Where the controller's news come from, with what it tells Kubernetes in return."""
