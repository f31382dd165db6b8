"""What a configuration will cost and do, said before it runs: the arithmetic of batches and steps. Runs nothing."""
