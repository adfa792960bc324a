"""What a decision is: the words that methods and executors share. Knows no paper and no Hugging Face model."""
