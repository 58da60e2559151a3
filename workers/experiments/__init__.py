"""The paper's experiments, as jobs on the service: `adamserve reproduce`."""
