"""What is explored: scenarios, and the threads and objects that they are made into."""
