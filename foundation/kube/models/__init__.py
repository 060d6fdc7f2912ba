"""Typed views of Kubernetes objects, one module an API group, with only the fields that the suite reads.

The structs are *partial*: they decode what is listed and skip the rest, which is what makes a list of 10,000 pods cost
0.15 s. So a decoded object must never be sent back with PUT (the unknown fields would be lost); change objects with a
patch, or with `foundation.kube.client.KubeClient.update`, which makes one.
"""
