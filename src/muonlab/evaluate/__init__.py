"""What a trained model can do: answers read out of its text, votes, accuracy with its interval, comparisons."""
