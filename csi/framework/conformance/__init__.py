"""The conformance suite of storage backends: `pytest --pyargs csi.framework.conformance --backend-section FILE`."""
