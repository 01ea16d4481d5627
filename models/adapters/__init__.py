"""The systems as other tools expect them: skorch and braindecode, the Hugging Face Hub."""
