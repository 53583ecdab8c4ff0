"""One file for each part of the API: routes translate a request into one call below, and shape its answer."""
