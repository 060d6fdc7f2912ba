"""The Kubernetes API as this suite uses it: typed models, a reflector, leader election and writes."""
