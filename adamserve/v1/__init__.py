"""Messages and stubs made from proto/adamserve/v1 by scripts/protos; not edited by hand."""
