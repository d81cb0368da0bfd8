"""Jobs over HTTP: from a request to the queue, and jobs, events and result files as clients see them."""
