"""CoLeCLIP: task prompts and a vocabulary of class names."""
