"""Jobs: the table of all of them, the queue that workers claim from, and the history of each."""
